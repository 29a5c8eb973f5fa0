"""One pass over a tar's headers: the offsets of its samples' images and captions. Imports no torch."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from growclip_ds.data.faults import Cause, Fault
from growclip_ds.data.tar import members_of

PICTURE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CAPTION_EXTENSION = "txt"

BLOCK = tarfile.BLOCKSIZE  # bytes; a member is a header block, followed by its data from the next block on
_LARGEST = np.iinfo(np.int32).max  # limit on the bytes of an image or caption, and on the blocks of a tar


@dataclass
class Scan:
    """The contents of a tar.

    Attributes:
        places: (n, 4) little-endian int32, a row per sample: the 512-byte block at which the image's first header
            begins, the image's length in bytes, and the same two for the caption.
        left_out: number of unusable samples, by cause; those lost from a damaged tar, or one that lacks some, are
            counted by img2dataset's `NNNNN_stats.json` beside it, or else as 1.
        faults: the unusable samples; one entry with the tar's path stands for those lost.
    """

    places: np.ndarray
    left_out: Counter[Cause] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)


def scan(path: str) -> Scan:
    """Scans a tar up to its end, or to where it is truncated or damaged.

    As in webdataset, a sample consists of consecutive members with the same path up to the first dot of the file name.
    Of several images in a sample, the first one is used.
    """
    places: list[tuple[int, int, int, int]] = []
    faults: list[Fault] = []

    def add(key: str | None, members: dict[str, tarfile.TarInfo]) -> None:
        picture = next((members[e] for e in members if e in PICTURE_EXTENSIONS), None)
        caption = members.get(CAPTION_EXTENSION)
        if key is None or (picture is None and caption is None):
            return  # not a sample of ours: a README, a class label
        if picture is None or caption is None:
            faults.append(Fault(key, Cause.NO_PICTURE if picture is None else Cause.NO_CAPTION))
            return
        places.append((picture.offset // BLOCK, picture.size, caption.offset // BLOCK, caption.size))

    key: str | None = None
    members: dict[str, tarfile.TarInfo] = {}
    complete = True
    try:
        for member in _members(path):
            member_key, extension = key_and_extension(member.name)
            if member_key is None:
                continue
            if member_key != key:
                add(key, members)
                key, members = member_key, {}
            members.setdefault(extension, member)
    except (OSError, tarfile.TarError, ValueError):
        complete = False  # the sample in which it ends is one of the lost ones
        if {*members} & {*PICTURE_EXTENSIONS} and CAPTION_EXTENSION in members:
            add(key, members)
    else:
        add(key, members)
    left_out = Counter(fault.cause for fault in faults)
    if lost := max(int(not complete), _expected(path) - len(places) - len(faults)):
        left_out[Cause.DAMAGED_SHARD] = lost
        faults.append(Fault(path, Cause.DAMAGED_SHARD))
    return Scan(np.array(places, dtype="<i4").reshape(-1, 4), left_out, faults)


def _members(path: str) -> Iterator[tarfile.TarInfo]:
    """Yields a tar's regular files except webdataset's own (`__…__`), each checked to be there to its last byte.

    Raises:
        OSError, tarfile.TarError, ValueError: the file cannot be opened, is not a tar, or is truncated or damaged here.
    """
    size = Path(path).stat().st_size
    with tarfile.open(path, "r:") as tar:
        for member in members_of(tar):
            if member.issparse():  # `tar -S`: stored without its zeros, shorter than its stated size
                continue
            if member.offset_data + member.size > size:
                raise tarfile.ReadError(f"cut off at byte {size}")
            if member.size > _LARGEST or member.offset // BLOCK > _LARGEST:
                raise tarfile.ReadError(f"{member.name} is too large, or too far back in the tar")
            if member.isreg() and not is_of_webdataset(member.name):
                yield member


def _expected(path: str) -> int:
    """The number of samples that img2dataset recorded for the tar; 0 if there is no record."""
    try:
        return samples_of_stats(Path(path).with_name(f"{Path(path).stem}_stats.json").read_bytes())
    except (OSError, ValueError):
        return 0


def samples_of_stats(data: bytes) -> int:
    """The number of samples of a shard, from the contents of img2dataset's `NNNNN_stats.json`.

    Raises:
        ValueError: the data does not contain it.
    """
    stats = json.loads(data)
    samples = stats.get("successes") if isinstance(stats, dict) else None
    if not isinstance(samples, int) or samples < 0:
        raise ValueError("no number of 'successes'")
    return samples


def is_of_webdataset(name: str) -> bool:
    """Whether a member is one of webdataset's own, which it leaves out of samples."""
    return re.match(r"__[^/]*__($|/)", name) is not None


def key_and_extension(name: str) -> tuple[str | None, str]:
    """Splits a member's name as webdataset does: `a/b.seg.PNG` into key `a/b` and extension `seg.png`."""
    match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", name)
    return (match.group(1), match.group(2).lower()) if match else (None, "")
