"""Why a sample cannot be used; its place in the batch is then left empty, so that nothing shifts."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple


class Cause(StrEnum):
    """What is wrong with a sample, in the words shown to the user."""

    NO_PICTURE = "no picture"
    NO_CAPTION = "no caption"
    UNREADABLE_SHARD = "shard cannot be read or has changed"
    BROKEN_PICTURE = "picture cannot be decoded"
    DECOMPRESSION_BOMB = "picture has too many pixels"
    EMPTY_CAPTION = "caption is empty"
    CAPTION_NOT_UTF8 = "caption is not UTF-8"


class BrokenSample(Exception):
    """A sample of the shards that cannot be used, with the cause."""

    def __init__(self, cause: Cause, detail: str = "") -> None:
        super().__init__(cause, detail)
        self.cause = cause
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.cause}: {self.detail}" if self.detail else str(self.cause)


class Fault(NamedTuple):
    """A place left empty.

    Attributes:
        key: the sample's key, or its shard's path where the key itself cannot be read.
        cause: what is wrong with the sample.
    """

    key: str
    cause: Cause


def in_words(counts: Mapping[Cause, int]) -> str:
    """Samples by what is wrong with them, for a message."""
    return ", ".join(f"{count:,} with {cause}" for cause, count in counts.items())
