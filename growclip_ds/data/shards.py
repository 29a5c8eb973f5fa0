"""An index of webdataset shards: where in which tar a sample's picture and caption lie."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from growclip_ds.data.faults import Cause, in_words
from growclip_ds.data.index_file import IndexedShard, build_index, is_here, read_index
from growclip_ds.data.scan import CAPTION_EXTENSION, PICTURE_EXTENSIONS
from growclip_ds.data.worker_processes import processors
from growclip_ds.distributed import all_gather_object, on_every_rank, rank, world_size
from growclip_ds.errors import InputError

Progress = Callable[[int, int], None]
"""Told how many tars of how many are done."""

_FEW = 16  # tars that are scanned in this process: starting others takes as long
_MOST_PROCESSES = 16  # that scan, a rank
READERS = 16  # threads that wait for the file system

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Samples of some shards, in the shards' order: 16 bytes a sample, in shared memory.

    Attributes:
        shards: the tars' absolute paths.
        ends: (shards,) int64, how many samples there are up to the end of each shard.
        places: (N, 4) int32, a sample a row: the block of 512 bytes at which the picture's first header begins, the
            picture's length in bytes, the same two for the caption. All data loading workers share it.
        left_out: samples of the shards that cannot be used, by cause.
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
        """The index of the first samples; their places are not copied."""
        return ShardIndex(self.shards, self.ends.clamp(max=samples), self.places[:samples], self.left_out)


def index_shards(shards: Sequence[str | os.PathLike[str]], progress: Progress | None = None) -> ShardIndex:
    """The index of all usable samples of some tars. Collective.

    Raises:
        InputError: on every rank, if no tar has a usable sample.
    """
    opened = open_shards(shards, progress)
    require_samples(opened)
    return collect(opened)


def open_shards(shards: Sequence[str | os.PathLike[str]], progress: Progress | None = None) -> list[IndexedShard]:
    """Finds or builds the indexes of tars. Collective: the ranks, and processes of each, share the work.

    Where the ranks' machines do not see the same files, each machine builds what it lacks.

    Args:
        shards: the tars; their paths may differ between machines, where some have copies.
        progress: told of this rank's part.
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
    """The index of the same tar as this machine has it.

    Raises:
        InputError: its tar is another one.
    """
    own = read_index(shard.path) or build_index(shard.path)
    if (own.stamp, own.samples) != (shard.stamp, shard.samples):
        raise InputError(f"{shard.path} is not the same on all machines; copy it again")
    return own


def collect(opened: Sequence[IndexedShard], wanted: Tensor | None = None) -> ShardIndex:
    """Joins the indexes of shards, in shared memory; no more than a few shards' are in memory besides.

    Args:
        opened: the shards.
        wanted: (samples of all shards,) bool, which of them; all if None.
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
        InputError: none has.
    """
    if any(shard.samples for shard in opened):
        return
    missing = in_words(sum((shard.left_out for shard in opened), Counter()))
    raise InputError(
        f"no usable sample in {few([shard.path for shard in opened])}: a sample is a picture "
        f"({', '.join(PICTURE_EXTENSIONS)}) and a caption ({CAPTION_EXTENSION}) of the same name, one after the other "
        "in the tar" + (f"; there are {missing}" if missing else "; there are none with either")
    )


def few(paths: Sequence[str]) -> str:
    """Some of the paths, for a message."""
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def for_each_file(function: Callable[[S], T], of: Iterable[S]) -> list[T]:
    """What a function gives for each of many files, in their order; several wait for the file system at a time."""
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

    processes = min(_MOST_PROCESSES, processors() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), len(absent))
    if len(absent) <= _FEW or processes < 2:
        for path in absent:
            built(build_index(path))
    else:
        # Spawned: they import no torch, and the fork server is left for the data loading workers to start as they want.
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            for future in as_completed([pool.submit(build_index, path) for path in absent]):
                built(future.result())
    return [found[path] for path in paths]
