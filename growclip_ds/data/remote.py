"""Shards that can only be streamed, and how they are divided among ranks and workers.

An epoch's shards, shuffled, form one sequence of samples. It is cut into lanes, one for each worker of each rank, of as
many samples as the micro-batches that the worker fills. So every sample is read once per epoch, and all ranks have the
same number of iterations, whatever the sizes of the shards. A lane is read in several places in turn, which mixes
shards. If a lane's part of a shard does not start at the shard's beginning, the samples before it are streamed and
discarded.

A resumed run redistributes the unread samples of the lanes over its ranks and workers, however many there are.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from growclip_ds.data.faults import Cause
from growclip_ds.data.order import permutation

SCHEMES = ("http", "https", "s3", "gs", "pipe")
PLACES = 4  # places of a lane that are read in turn

Interval = tuple[int, int]


def is_remote(pattern: str) -> bool:
    """Whether a pattern is one of shards to stream: `https://…`, `s3://…`, `pipe:command`."""
    return re.match(rf"({'|'.join(SCHEMES)}):", pattern) is not None


@dataclass(frozen=True)
class RemoteShards:
    """Shards to stream.

    Attributes:
        urls: the shards, as URLs or `pipe:` commands; paths of local tars are accepted too.
        samples: number of samples in each shard.
        left_out: empty, as unusable samples are found only when they are read.
    """

    urls: tuple[str, ...]
    samples: tuple[int, ...]
    left_out: Counter[Cause] = field(default_factory=Counter)

    def __len__(self) -> int:
        return sum(self.samples)

    def first(self, samples: int) -> RemoteShards:
        """The first shards, which contain `samples` samples in total."""
        ends = np.cumsum(self.samples)
        count = int(np.searchsorted(ends, samples)) + 1
        return RemoteShards(self.urls[:count], self.samples[:count])


class Deal(NamedTuple):
    """How the samples of a phase are divided among ranks and workers, from an iteration on.

    Attributes:
        iteration: the iteration of the phase from which the deal applies.
        world_size: number of ranks.
        micro_batches: micro-batches per rank and iteration.
        workers: workers per rank.
    """

    iteration: int
    world_size: int
    micro_batches: int
    workers: int


class Piece(NamedTuple):
    """Consecutive samples of a shard: `count` samples after the first `skip`."""

    url: str
    skip: int
    count: int  # type: ignore[assignment]  # replaces a tuple's method


class RemoteOrder:
    """Which worker reads which samples in a phase.

    Each epoch is a whole number of iterations, the last of which may be short.

    Args:
        shards: the shards to stream.
        global_batch_size: B, samples per iteration over all ranks.
        epochs: length of the phase.
        seed: with the epoch, determines the order of the shards.
        deals: one for the start of the phase and one for each resume, in order; the last one is in force.

    Attributes:
        iterations: iterations in the phase.
    """

    def __init__(
        self, shards: RemoteShards, global_batch_size: int, epochs: int, seed: int, deals: Sequence[Deal]
    ) -> None:
        self.shards, self.global_batch_size, self.seed, self.deals = shards, global_batch_size, seed, tuple(deals)
        self.samples = len(shards)
        self.iterations_of_epoch = math.ceil(self.samples / global_batch_size)
        self.iterations = epochs * self.iterations_of_epoch

    def batch_size(self, iteration: int) -> int:
        """Number of samples in a global batch."""
        return min(self.global_batch_size, self.samples - iteration % self.iterations_of_epoch * self.global_batch_size)

    def micro_batch_sizes(self, iteration: int, deal: Deal) -> np.ndarray:
        """Number of samples in each micro-batch of an iteration, (ranks, micro-batches per rank)."""
        pieces = deal.world_size * deal.micro_batches
        bounds = self.batch_size(iteration) * np.arange(pieces + 1) // pieces
        return np.diff(bounds).reshape(deal.world_size, deal.micro_batches)

    def lane(self, epoch: int, rank: int, worker: int) -> list[list[Piece]]:
        """What a worker reads in an epoch: the places to read in turn, each a list of pieces; [] if there are none."""
        start, stop = self._iterations(epoch)
        rest: list[Interval] = [(0, self.samples)]
        for deal, until in zip(self.deals, [deal.iteration for deal in self.deals[1:]] + [stop], strict=True):
            first, until = max(start, deal.iteration), min(until, stop)
            if first >= until:
                continue
            lanes = _deal(rest, self._lengths(deal, first, stop).ravel().tolist())
            if deal is self.deals[-1]:
                return [self._pieces(epoch, place) for place in _places(lanes[rank * deal.workers + worker])]
            read = self._lengths(deal, first, until).ravel().tolist()
            rest = [interval for lane, length in zip(lanes, read, strict=True) for interval in _unread(lane, length)]
        return []

    def _iterations(self, epoch: int) -> tuple[int, int]:
        """The first iteration of an epoch within the phase, and that of the next epoch."""
        return epoch * self.iterations_of_epoch, (epoch + 1) * self.iterations_of_epoch

    def _lengths(self, deal: Deal, first: int, stop: int) -> np.ndarray:
        """Number of samples of each lane in iterations `first` to `stop` of an epoch, (ranks, workers)."""
        lengths = np.zeros((deal.world_size, deal.workers), dtype=np.int64)
        whole = stop - (stop % self.iterations_of_epoch == 0)  # the epoch's last iteration may be short
        first_turn, turns = ((i - deal.iteration) * deal.micro_batches for i in (first, max(first, whole)))
        of_worker = np.arange(deal.workers)
        count = (turns - of_worker - 1) // deal.workers - (first_turn - of_worker - 1) // deal.workers
        lengths += count * (self.global_batch_size // (deal.world_size * deal.micro_batches))
        if whole < stop and whole >= first:
            sizes = self.micro_batch_sizes(whole, deal)
            for micro_batch in range(deal.micro_batches):
                lengths[:, (turns + micro_batch) % deal.workers] += sizes[:, micro_batch]
        return lengths

    def _pieces(self, epoch: int, intervals: Sequence[Interval]) -> list[Piece]:
        order = permutation(len(self.shards.urls), self.seed, epoch)
        starts = np.concatenate([[0], np.cumsum(np.array(self.shards.samples, dtype=np.int64)[order])])
        pieces = []
        for start, stop in intervals:
            shard = int(np.searchsorted(starts, start, side="right")) - 1
            while start < stop:
                end = min(stop, int(starts[shard + 1]))
                if end > start:
                    pieces.append(Piece(self.shards.urls[order[shard]], start - int(starts[shard]), end - start))
                start, shard = end, shard + 1
        return pieces


def _deal(intervals: Sequence[Interval], lengths: Sequence[int]) -> list[list[Interval]]:
    """Cuts a sequence of intervals into consecutive parts of the given lengths."""
    source: Iterator[Interval] = iter(intervals)
    start = stop = 0
    parts = []
    for length in lengths:
        part: list[Interval] = []
        while length:
            if start == stop:
                start, stop = next(source)
            taken = min(length, stop - start)
            if taken:
                part.append((start, start + taken))
            start, length = start + taken, length - taken
        parts.append(part)
    return parts


def _places(lane: Sequence[Interval]) -> list[list[Interval]]:
    """The parts of a lane that are read in turn, of lengths as equal as possible, longer ones first."""
    length = sum(stop - start for start, stop in lane)
    return _deal(lane, [-(-(length - place) // PLACES) for place in range(PLACES)])


def _unread(lane: Sequence[Interval], read: int) -> Iterator[Interval]:
    """What is left of a lane after `read` samples were taken from its places in turn."""
    for number, place in enumerate(_places(lane)):
        length = sum(stop - start for start, stop in place)
        taken = max(0, -(-(read - number) // PLACES))
        yield from _deal(place, [taken, length - taken])[1]
