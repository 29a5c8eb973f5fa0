"""Broken samples: why they cannot be used, and the lists of them. Their places in a batch are left empty."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple


class Cause(StrEnum):
    """What is wrong with a sample, as shown to the user."""

    NO_PICTURE = "no picture"
    NO_CAPTION = "no caption"
    DAMAGED_SHARD = "shard cut off or damaged"
    UNREADABLE_SHARD = "shard cannot be read or has changed"
    BROKEN_PICTURE = "picture cannot be decoded"
    DECOMPRESSION_BOMB = "picture has too many pixels"
    EMPTY_CAPTION = "caption is empty"
    CAPTION_NOT_UTF8 = "caption is not UTF-8"


class BrokenSample(Exception):
    """A sample cannot be used, with the cause."""

    def __init__(self, cause: Cause, detail: str = "") -> None:
        super().__init__(cause, detail)
        self.cause = cause
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.cause}: {self.detail}" if self.detail else str(self.cause)


class Fault(NamedTuple):
    """A broken sample, whose place in the batch is left empty.

    Attributes:
        key: the sample's key, or its shard's path or URL if the key itself cannot be read.
        cause: what is wrong with the sample.
    """

    key: str
    cause: Cause


class FaultList:
    """A list of broken samples on disk, one JSON object per line, to which one process appends.

    Existing lines are kept; a process lists each sample once, however often it is met.

    Args:
        file: path of the list, which no other process may write.
        where: further fields of every entry, such as the phase.
    """

    def __init__(self, file: Path, **where: int | str) -> None:
        self.file = file
        self._where = where
        self._listed: set[Fault] = set()

    def add(self, faults: Iterable[Fault], **where: int | str) -> None:
        """Appends the faults that are new, with further fields, in one write: a killed run leaves no partial line.

        Raises:
            OSError: the file cannot be written.
        """
        new = [fault for fault in dict.fromkeys(faults) if fault not in self._listed]
        if not new:
            return
        self._listed.update(new)
        place = self._where | where
        lines = "".join(json.dumps({"key": fault.key, "cause": fault.cause} | place) + "\n" for fault in new)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, lines.encode())
        finally:
            os.close(descriptor)


def in_words(counts: Mapping[Cause, int]) -> str:
    """The number of samples with each cause, for a message."""
    return ", ".join(f"{count:,} with {cause}" for cause, count in counts.items())
