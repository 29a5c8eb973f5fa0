"""The global batch: where this rank's samples lie in it, and the collectives over its ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

# Since torch 2.13, the older names warn.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class Ranks:
    """The ranks that share a global batch, and their numbers of samples.

    Args:
        local: number of samples on this rank.
        device: device of its features.
        group: process group of the ranks; the default group if None.
        counts: number of samples of every rank. If None, the ranks exchange them, which waits for the device.

    Attributes:
        counts: number of samples of every rank.
        offset: index of this rank's first sample in the global batch.
        total: n, number of samples of all ranks.

    Raises:
        ValueError: `counts` does not have one entry per rank, or contradicts `local`.
    """

    def __init__(
        self, local: int, device: torch.device, group: dist.ProcessGroup | None, counts: Sequence[int] | None = None
    ) -> None:
        self.group, self.local = group, local
        self.size = dist.get_world_size(group) if dist.is_initialized() else 1
        rank = dist.get_rank(group) if self.size > 1 else 0
        self.counts = self._gather_counts(rank, device) if counts is None else list(counts)
        if len(self.counts) != self.size or self.counts[rank] != local:
            raise ValueError(f"counts must be of {self.size} ranks and {local} for rank {rank}, not {self.counts}")
        self.offset = sum(self.counts[:rank])
        self.total = sum(self.counts)

    def _gather_counts(self, rank: int, device: torch.device) -> list[int]:
        if self.size == 1:
            return [self.local]
        counts = torch.zeros(self.size, dtype=torch.int64, device=device)
        counts[rank] = self.local
        dist.all_reduce(counts, group=self.group)
        return counts.tolist()

    def gather(self, local: Tensor) -> Tensor:
        """All-gathers (n_r, d) of every rank -> (n, d)."""
        if self.size == 1:
            return local
        longest = max(self.counts)
        padded = local.contiguous()
        if self.local < longest:
            padded = local.new_zeros(longest, *local.shape[1:])
            padded[: self.local] = local
        gathered = local.new_empty(self.size * longest, *local.shape[1:])
        _all_gather(gathered, padded, group=self.group)
        if self.total == self.size * longest:
            return gathered
        parts = gathered.split(longest)
        return torch.cat([part[:count] for part, count in zip(parts, self.counts, strict=True)])

    def sum_scatter(self, value: Tensor) -> Tensor:
        """Reduce-scatters: sums (n, d) over the ranks and returns this rank's own rows, (n_r, d)."""
        if self.size == 1:
            return value
        longest = max(self.counts)
        padded = value
        if self.total < self.size * longest:
            padded = value.new_zeros(self.size * longest, *value.shape[1:])
            for part, own in zip(padded.split(longest), value.split(self.counts), strict=True):
                part[: own.shape[0]] = own
        own = value.new_empty(longest, *value.shape[1:])
        _reduce_scatter(own, padded, group=self.group)
        return own[: self.local]

    def sum(self, value: Tensor) -> Tensor:
        """All-reduces: the sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(value, group=self.group)
        return value

    def combine_lse(self, partial: Tensor) -> Tensor:
        """Element-wise log-sum-exp over the ranks."""
        if self.size == 1:
            return partial
        largest = partial.clone()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group)
        return largest + self.sum((partial - largest).exp_()).log_()
