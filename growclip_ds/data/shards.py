"""The index of webdataset shards: the tar and the offsets of every sample's image and caption."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from growclip_ds.data.faults import Cause, in_words
from growclip_ds.data.index_file import IndexedShard, build_index, is_here, read_index
from growclip_ds.data.scan import CAPTION_EXTENSION, PICTURE_EXTENSIONS
from growclip_ds.data.worker_processes import map_in_processes, share_of_processors
from growclip_ds.distributed import all_gather_object, on_every_rank, rank, world_size
from growclip_ds.errors import InputError

Progress = Callable[[int, int], None]
"""Called with the number of tars done and their total number."""

_FEW = 16  # up to this number of tars, this process scans them: starting others takes as long
_MOST_PROCESSES = 16  # scanning processes per rank
READERS = 16  # concurrent file system operations, each in a thread

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Samples of some shards, in the shards' order: 16 bytes per sample, in shared memory.

    Attributes:
        shards: the tars' absolute paths.
        ends: (shards,) int64, the number of samples up to the end of each shard.
        places: (N, 4) int32, a row per sample: the 512-byte block at which the image's first header begins, the image's
            length in bytes, and the same two for the caption. Shared by all data loading workers.
        left_out: number of unusable samples in the shards, by cause.
    """

    shards: tuple[str, ...]
    ends: Tensor
    places: Tensor
    left_out: Counter[Cause] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.places)

    def shard_of(self, position: int) -> str:
        return self.shards[int(torch.searchsorted(self.ends, int(position), right=True))]

    def first(self, samples: int) -> ShardIndex:
        """The index of the first `samples` samples, sharing memory with this one."""
        return ShardIndex(self.shards, self.ends.clamp(max=samples), self.places[:samples], self.left_out)


def index_shards(shards: Sequence[str | os.PathLike[str]], progress: Progress | None = None) -> ShardIndex:
    """Indexes all usable samples of some tars. Collective.

    Raises:
        InputError: no tar has a usable sample; raised on every rank.
    """
    opened = open_shards(shards, progress)
    require_samples(opened)
    return collect(opened)


def open_shards(shards: Sequence[str | os.PathLike[str]], progress: Progress | None = None) -> list[IndexedShard]:
    """Reads or builds the indexes of tars. Collective: the ranks, each with several processes, share the work.

    Where machines do not share a file system, each one builds the indexes that it lacks.

    Args:
        shards: paths of the tars; they may differ between machines, where some have local copies.
        progress: called with this rank's progress.
    """
    paths = [str(Path(shard).absolute()) for shard in shards]
    mine = on_every_rank(lambda: _find_or_build(paths[rank() :: world_size()], progress))
    parts = all_gather_object(mine)
    opened = [parts[i % world_size()][i // world_size()] for i in range(len(paths))]

    def is_present(i: int) -> bool:
        return i % world_size() == rank() or (opened[i].path == paths[i] and is_here(opened[i]))

    present = for_each_file(is_present, range(len(paths)))
    absent = [i for i, is_there in enumerate(present) if not is_there]
    if any(all_gather_object(bool(absent))):  # another machine's files
        local_rank, local_world_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        on_every_rank(lambda: _find_or_build([paths[i] for i in absent[local_rank::local_world_size]], None))
        own = on_every_rank(lambda: for_each_file(lambda i: on_this_machine(replace(opened[i], path=paths[i])), absent))
        for i, shard in zip(absent, own, strict=True):
            opened[i] = shard
    return opened


def on_this_machine(shard: IndexedShard) -> IndexedShard:
    """The index of this machine's file at the path of a tar that another machine has indexed.

    Raises:
        InputError: the two files differ.
    """
    own = read_index(shard.path) or build_index(shard.path)
    if (own.stamp, own.samples) != (shard.stamp, shard.samples):
        raise InputError(f"{shard.path} is not the same on all machines; copy it again")
    return own


def collect(opened: Sequence[IndexedShard], wanted: Tensor | None = None) -> ShardIndex:
    """Joins the indexes of shards in shared memory, with only a few shards' indexes in memory besides.

    Args:
        opened: the indexed shards.
        wanted: (samples of all shards,) bool, the samples to keep; None: all.
    """
    counts = [shard.samples for shard in opened]
    masks = None if wanted is None else wanted.split(counts)
    if masks is not None:
        counts = [int(mask.sum()) for mask in masks]
    ends = torch.tensor([0, *counts]).cumsum(0)
    places = torch.empty(int(ends[-1]), 4, dtype=torch.int32).share_memory_()
    parts = places.split(counts)

    def fill(number: int) -> None:
        if not counts[number]:
            return
        try:
            rows = torch.from_numpy(opened[number].places().astype("=i4"))
        except OSError as error:
            path = opened[number].path
            raise InputError(f"the index of {path} cannot be read ({error}); start again") from error
        parts[number].copy_(rows if masks is None else rows[masks[number]])

    for_each_file(fill, range(len(opened)))
    left_out = sum((shard.left_out for shard in opened), Counter())
    return ShardIndex(tuple(shard.path for shard in opened), ends[1:], places, left_out)


def require_samples(opened: Sequence[IndexedShard]) -> None:
    """Checks that some shard has a usable sample.

    Raises:
        InputError: no shard has one.
    """
    if any(shard.samples for shard in opened):
        return
    left_out = sum((shard.left_out for shard in opened), Counter())
    raise InputError(f"no usable sample in {few([shard.path for shard in opened])}: {what_a_sample_is(left_out)}")


def what_a_sample_is(broken: Mapping[Cause, int]) -> str:
    """What is needed where no sample is usable, and what is there instead, for a message."""
    return (
        f"a sample is an image ({', '.join(PICTURE_EXTENSIONS)}) and a caption ({CAPTION_EXTENSION}) of the same name, "
        f"one after the other in the tar; there are {in_words(broken) or 'none with either'}"
    )


def few(paths: Sequence[str]) -> str:
    """The first three paths and the number of the others, for a message."""
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def for_each_file(function: Callable[[S], T], of: Iterable[S]) -> list[T]:
    """Maps a function that waits for the file system over many files, several at a time; keeps their order."""
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(function, of))


def _find_or_build(paths: Sequence[str], progress: Progress | None) -> list[IndexedShard]:
    read = dict(zip(paths, for_each_file(read_index, paths), strict=True))
    found = {path: index for path, index in read.items() if index is not None}
    absent = [path for path in read if path not in found]

    def built(index: IndexedShard) -> None:
        found[index.path] = index
        if progress is not None:
            progress(len(found), len(read))

    processes = min(_MOST_PROCESSES, share_of_processors(), len(absent))
    if len(absent) <= _FEW or processes < 2:
        for path in absent:
            built(build_index(path))
    else:
        # Spawned: they import no torch, and the fork server is left to the data loading workers and their preloads.
        for index in map_in_processes(build_index, absent, processes):
            built(index)
    return [found[path] for path in paths]
