"""The order of training: a sample's position depends only on the seed, the epoch and the number of samples.

It is independent of the numbers of ranks and workers, so a resumed run needs nothing but a position in the order.

Large data sets are shuffled in blocks. The samples of an epoch, starting from a random one, are cut into blocks of 256
consecutive samples; the blocks are shuffled and divided into windows of 256 to 384 blocks; within a window, the blocks
are interleaved at random, each read in order. So the samples of a batch come from all over the data, while only a few
hundred sequential reads are active at any time, and only one window of the order is in memory.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

from growclip_ds.errors import InputError

BLOCK_SAMPLES = 256
WINDOW_BLOCKS = 256
FEW_SAMPLES = 2 * BLOCK_SAMPLES * WINDOW_BLOCKS  # up to this size, an epoch is one full permutation


def draws(count: int, seed: int, epoch: int, part: int = 0) -> np.ndarray:
    """Random numbers, (count,) uint64, determined by seed, epoch and part, each of at most 64 bits.

    Raw Philox output, which NumPy keeps stable across versions, unlike the distributions of `Generator`.
    """
    counter = np.array([0, 0, 0, part], dtype=np.uint64)
    return np.random.Philox(counter=counter, key=np.array([seed, epoch], dtype=np.uint64)).random_raw(count)


def permutation(samples: int, seed: int, epoch: int, part: int = 0) -> np.ndarray:
    """A random permutation of `samples` indices, (samples,) int64; for the other arguments see `draws`."""
    return np.argsort(draws(samples, seed, epoch, part), kind="stable")


def require_rest(samples: int, held_out: int, subset_name: str) -> None:
    """Checks that holding samples out of a subset leaves some to train on.

    Raises:
        InputError: it does not.
    """
    if held_out >= samples:
        raise InputError(
            f"{held_out} pairs are to be held out of data subset '{subset_name}', which has {samples}; lower "
            "selection.held_out, or set selection.dataset, a labelled set to compare candidates on instead"
        )


def held_out_mask(samples: int, held_out: int, seed: int, subset_name: str) -> np.ndarray:
    """Which samples of a subset are held out of training, (samples,) bool.

    Determined by the seed and the subset alone, so the held-out samples stay the same when further subsets are added.

    Raises:
        InputError: no sample would be left to train on.
    """
    require_rest(samples, held_out, subset_name)
    digest = hashlib.sha256(f"{seed} {subset_name}".encode()).digest()
    mask = np.zeros(samples, dtype=bool)
    key = int.from_bytes(digest[:8]), int.from_bytes(digest[8:16])
    part = 0
    while (missing := held_out - int(mask.sum())) > 0:  # duplicates are drawn again
        mask[draws(missing, *key, part) % np.uint64(samples)] = True
        part += 1
    return mask


class EpochOrder:
    """The order of one epoch, any part of which can be computed at the same cost.

    Args:
        samples: N, number of samples.
        seed, epoch: with N, determine the order.
    """

    def __init__(self, samples: int, seed: int, epoch: int) -> None:
        self.samples, self.seed, self.epoch = samples, seed, epoch
        self.windows = max(1, samples // (BLOCK_SAMPLES * WINDOW_BLOCKS)) if samples > FEW_SAMPLES else 1
        self._starts = np.array([0, samples])  # where each window of the epoch starts, and the epoch's end
        if self.windows > 1:
            self._first = int(draws(1, seed, epoch, part=1)[0] % np.uint64(samples))
            blocks = -(-samples // BLOCK_SAMPLES)
            self._blocks = permutation(blocks, seed, epoch)
            self._bounds = [blocks * window // self.windows for window in range(self.windows + 1)]
            sizes = np.minimum(BLOCK_SAMPLES, samples - self._blocks * BLOCK_SAMPLES)
            self._starts = np.concatenate([[0], np.cumsum(sizes)])[self._bounds]
        self._window: int | None = None
        self._window_order = np.empty(0, dtype=np.int64)

    def part(self, start: int, stop: int) -> np.ndarray:
        """The samples at positions `start` to `stop` of the epoch, (stop - start,) int64."""
        parts = [np.empty(0, dtype=np.int64)]
        while start < stop:
            window = int(np.searchsorted(self._starts, start, side="right")) - 1
            offset = start - int(self._starts[window])
            taken = self._order_of(window)[offset : offset + stop - start]
            parts.append(taken)
            start += len(taken)
        return np.concatenate(parts)

    def _order_of(self, window: int) -> np.ndarray:
        if window != self._window:
            make = self._interleaved if self.windows > 1 else self._shuffled
            self._window, self._window_order = window, make(window)
        return self._window_order

    def _shuffled(self, window: int) -> np.ndarray:
        return permutation(self.samples, self.seed, self.epoch)

    def _interleaved(self, window: int) -> np.ndarray:
        blocks = self._blocks[self._bounds[window] : self._bounds[window + 1]]
        samples = (blocks[:, None] * BLOCK_SAMPLES + np.arange(BLOCK_SAMPLES)).ravel()
        owners = np.repeat(np.arange(len(blocks)), BLOCK_SAMPLES)
        inside = samples < self.samples  # the last block may be short
        samples, owners = samples[inside], owners[inside]
        shuffled = owners[permutation(len(samples), self.seed, self.epoch, part=2 + window)]
        order = np.empty_like(samples)
        order[np.argsort(shuffled, kind="stable")] = samples  # each block's samples fill its positions in order
        return (order + self._first) % self.samples


class TrainingOrder:
    """The global batches of a phase, in the order of training.

    Epochs follow each other without a gap: a batch may contain the end of one and the beginning of the next, and only
    the last batch of the phase may be short.

    Args:
        samples: N, samples per epoch.
        global_batch_size: B, samples per iteration over all ranks.
        epochs: length of the phase.
        seed: seed of the order.

    Attributes:
        length: samples in the phase, epochs · N.
        iterations: iterations in the phase, ⌈epochs · N / B⌉.
    """

    def __init__(self, samples: int, global_batch_size: int, epochs: int, seed: int) -> None:
        self.samples = samples
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.length = epochs * samples
        self.iterations = math.ceil(self.length / global_batch_size)
        self._epoch = EpochOrder(samples, seed, 0)

    def batch(self, iteration: int) -> np.ndarray:
        """The samples of a global batch, (B,) int64; the last one may be shorter."""
        start = iteration * self.global_batch_size
        stop = min(start + self.global_batch_size, self.length)
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.samples)
            if epoch != self._epoch.epoch:
                self._epoch = EpochOrder(self.samples, self.seed, epoch)
            part = self._epoch.part(offset, min(offset + stop - start, self.samples))
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def batch_size(self, iteration: int) -> int:
        """Number of samples in a global batch."""
        return min(self.global_batch_size, self.length - iteration * self.global_batch_size)


def shares(batch: np.ndarray, rank: int, world_size: int, micro_batches: int) -> list[np.ndarray]:
    """A rank's micro-batches of a global batch: contiguous, in the order of the ranks, of sizes as equal as possible.

    The sizes of any two micro-batches, on any ranks, differ by at most one; a size may be 0.
    """
    pieces = world_size * micro_batches
    bounds = [len(batch) * piece // pieces for piece in range(pieces + 1)]
    mine = range(rank * micro_batches, (rank + 1) * micro_batches)
    return [batch[bounds[piece] : bounds[piece + 1]] for piece in mine]
