"""The order of training: a sample's place depends on the seed, the epoch and the number of samples alone.

Neither the number of ranks nor that of workers comes in, so a position in the order is all that a resumed run needs.
"""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import numpy as np

from growclip_ds.errors import InputError


def permutation(samples: int, seed: int, epoch: int) -> np.ndarray:
    """A random order of `samples` things, (samples,) int64, which two numbers of at most 64 bits decide.

    Sorts by Philox's raw numbers: NumPy keeps those the same from version to version, but not `Generator.permutation`.
    """
    draws = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(samples)
    return np.argsort(draws, kind="stable")


def held_out_mask(samples: int, held_out: int, seed: int, subset_name: str) -> np.ndarray:
    """Which samples of a subset are held out of training, (samples,) bool.

    The seed and the subset alone decide, so that they stay the same when other subsets join.

    Raises:
        InputError: so many held out that none would be left to train on.
    """
    if held_out >= samples:
        raise InputError(
            f"{held_out} pairs are to be held out of data subset '{subset_name}', which has {samples}; hold out fewer"
        )
    digest = hashlib.sha256(f"{seed} {subset_name}".encode()).digest()
    mask = np.zeros(samples, dtype=bool)
    mask[permutation(samples, int.from_bytes(digest[:8]), int.from_bytes(digest[8:16]))[:held_out]] = True
    return mask


class TrainingOrder:
    """The samples of a phase in the order of training, cut into global batches.

    Epochs follow each other without a gap: a batch may hold the end of one and the beginning of the next, and only the
    last batch of the phase may be short.

    Args:
        samples: N, samples of one epoch.
        global_batch_size: B, samples of an iteration over all ranks.
        epochs: length of the phase, not necessarily whole.
        seed: with the epoch, decides the order.

    Attributes:
        length: samples of the phase, ⌈epochs · N⌉.
        iterations: ⌈epochs · N / B⌉.
    """

    def __init__(self, samples: int, global_batch_size: int, epochs: float, seed: int) -> None:
        self.samples = samples
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.length = math.ceil(Fraction(str(epochs)) * samples)  # 0.1 epochs of 30 samples are 3, not 4
        self.iterations = math.ceil(self.length / global_batch_size)
        self._epoch: int | None = None
        self._epoch_order = np.empty(0, dtype=np.int64)

    def batch(self, iteration: int) -> np.ndarray:
        """The samples of a global batch, (B,) int64, fewer in the last."""
        start = iteration * self.global_batch_size
        stop = min(start + self.global_batch_size, self.length)
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.samples)
            part = self._order_of(epoch)[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def batch_size(self, iteration: int) -> int:
        """Samples of a global batch."""
        return min(self.global_batch_size, self.length - iteration * self.global_batch_size)

    def _order_of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch, self._epoch_order = epoch, permutation(self.samples, self.seed, epoch)
        return self._epoch_order


def shares(batch: np.ndarray, rank: int, world_size: int, micro_batches: int) -> list[np.ndarray]:
    """A rank's micro-batches of a global batch: contiguous and in the order of the ranks, as even as possible.

    The sizes of any two micro-batches, on whatever ranks, differ by one at most, and may be 0.
    """
    pieces = world_size * micro_batches
    bounds = [len(batch) * piece // pieces for piece in range(pieces + 1)]
    mine = range(rank * micro_batches, (rank + 1) * micro_batches)
    return [batch[bounds[piece] : bounds[piece + 1]] for piece in mine]
