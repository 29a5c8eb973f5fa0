"""An index of webdataset shards: where in which tar a sample's picture and caption lie."""

from __future__ import annotations

import itertools
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from growclip_ds.data.faults import Cause, in_words
from growclip_ds.distributed import all_gather_object, on_every_rank, rank, world_size
from growclip_ds.errors import InputError

PICTURE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CAPTION_EXTENSION = "txt"

BLOCK = tarfile.BLOCKSIZE  # bytes; a member is a block of header, then its data from the next block on


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The usable samples of some shards, in the shards' order: 16 bytes a sample, in tensors, which all workers share.

    Attributes:
        shards: the tars' absolute paths.
        ends: (shards,) int64, how many samples there are up to the end of each shard.
        places: (N, 4) int32, a sample a row: the picture's first block of 512 bytes in the tar, its length in bytes,
            the same two for the caption.
        long_keys: by shard and picture's block, the keys where a tar header may not hold the picture's name whole (over
            100 characters, or not ASCII); every other key is read from the header before the picture.
        left_out: samples of the shards that are not in the index because they lack a part, by cause.
    """

    shards: tuple[str, ...]
    ends: Tensor
    places: Tensor
    long_keys: dict[tuple[str, int], str] = field(default_factory=dict)
    left_out: Counter[Cause] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.places)

    def shard_of(self, position: int) -> str:
        return self.shards[int(torch.searchsorted(self.ends, int(position), right=True))]

    def only(self, wanted: Tensor) -> ShardIndex:
        """The index of the samples where `wanted`, (N,) bool, is true."""
        up_to = torch.cat([torch.zeros(1, dtype=torch.int64), wanted.cumsum(0)])
        return ShardIndex(self.shards, up_to[self.ends], self.places[wanted], self.long_keys, self.left_out)


def concatenate(parts: Sequence[ShardIndex]) -> ShardIndex:
    """One index of the samples of several, in their order."""
    before = itertools.accumulate(map(len, parts), initial=0)
    return ShardIndex(
        shards=tuple(shard for part in parts for shard in part.shards),
        ends=torch.cat([part.ends + start for part, start in zip(parts, before, strict=False)]),
        places=torch.cat([part.places for part in parts]),
        long_keys={place: key for part in parts for place, key in part.long_keys.items()},
        left_out=sum((part.left_out for part in parts), Counter()),
    )


def index_shards(shards: Sequence[str | os.PathLike[str]]) -> ShardIndex:
    """Scans the headers of tars; the ranks share the work, and all have the whole index after it.

    A sample is what webdataset takes for one: consecutive members with the same path up to the first dot of their file
    name. Of several pictures the first counts. Samples without a picture or without a caption are counted in
    `left_out`.

    Raises:
        InputError: on every rank, if a tar cannot be read, is cut off or damaged, or no tar has a usable sample.
    """
    paths = [str(Path(shard).absolute()) for shard in shards]
    mine = on_every_rank(lambda: [_scan(path) for path in paths[rank() :: world_size()]])
    scans = all_gather_object(mine)
    parts = [scans[i % world_size()][i // world_size()] for i in range(len(paths))]
    index = concatenate(parts)
    if not len(index):
        missing = in_words(index.left_out)
        raise InputError(
            f"no usable sample in {_few(paths)}: a sample is a picture ({', '.join(PICTURE_EXTENSIONS)}) and a caption "
            f"({CAPTION_EXTENSION}) of the same name, one after the other in the tar"
            + (f"; there are {missing}" if missing else "; there are none with either")
        )
    return index


def _scan(path: str) -> ShardIndex:
    places: list[tuple[int, int, int, int]] = []
    long_keys: dict[tuple[str, int], str] = {}
    left_out: Counter[Cause] = Counter()

    def add(key: str | None, members: dict[str, tarfile.TarInfo]) -> None:
        picture = next((members[e] for e in members if e in PICTURE_EXTENSIONS), None)
        caption = members.get(CAPTION_EXTENSION)
        if key is None or (picture is None and caption is None):
            return  # not a sample of ours: a README, a class label
        if picture is None or caption is None:
            left_out[Cause.NO_PICTURE if picture is None else Cause.NO_CAPTION] += 1
            return
        block = picture.offset_data // BLOCK
        places.append((block, picture.size, caption.offset_data // BLOCK, caption.size))
        if len(picture.name) > tarfile.LENGTH_NAME or not picture.name.isascii():
            long_keys[path, block] = key

    key, members = None, {}
    for member in _members(path):
        member_key, extension = key_and_extension(member.name)
        if member_key is None:
            continue
        if member_key != key:
            add(key, members)
            key, members = member_key, {}
        members.setdefault(extension, member)
    add(key, members)
    table = torch.tensor(places, dtype=torch.int32).view(-1, 4)
    return ShardIndex((path,), torch.tensor([len(table)]), table, long_keys, left_out)


def _members(path: str) -> Iterator[tarfile.TarInfo]:
    """A tar's regular files but webdataset's own (`__…__`).

    Raises:
        InputError: the file cannot be opened, is no tar, or is cut off or damaged somewhere.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # which it would keep all of
                if member.isreg() and not re.match(r"__[^/]*__($|/)", member.name):
                    yield member
            # tarfile takes a damaged header, and a file that stops between two members, for the end
            with Path(path).open("rb") as file:
                if os.pread(file.fileno(), BLOCK, tar.offset) != bytes(BLOCK):
                    raise tarfile.ReadError(f"cut off or damaged at byte {tar.offset}")
    except (OSError, tarfile.TarError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as a tar ({error}); fetch or write it again, or take it out of the folder"
        ) from error


def key_and_extension(name: str) -> tuple[str | None, str]:
    """`a/b.seg.PNG` is the part `seg.png` of sample `a/b`, as in webdataset."""
    match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", name)
    return (match.group(1), match.group(2).lower()) if match else (None, "")


def _few(paths: Sequence[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
