"""The default name of an evaluation set in reports."""

from __future__ import annotations

import re
from pathlib import Path

from growclip_ds.data.remote import is_remote

SPLIT = "test"  # the default split; a set's name states any other
# The beginning of a URL under a revision of a data set on the Hugging Face hub, or on a mirror of it.
HUB_REVISION = r"(https?://[^/]+/datasets/[^/]+/[^/]+)/(?:tree|resolve)/"


def set_name(location: str, split: str = SPLIT) -> str:
    """The last part of a set's path or URL, without a hub's revision, followed by the split unless it is the default.

    Args:
        location: the set's folder or URL; see `growclip_ds.evaluation.source.Source`.
        split: the set's split.
    """
    name = _last_part(location)
    return name if split == SPLIT else f"{name}-{split}"


def _last_part(location: str) -> str:
    if not is_remote(location):
        return Path(location).absolute().name
    without_revision = re.sub(HUB_REVISION + "[^/]+/?$", r"\1", location)
    place = without_revision.removeprefix("pipe:").partition("{}")[0]
    return re.split(r"[/\s]", place.rstrip("/"))[-1]
