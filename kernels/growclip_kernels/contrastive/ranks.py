"""The samples of all ranks: where this rank's lie among them, and the collectives over them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

# From torch 2.13 on the older names warn.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class Ranks:
    """The global batch.

    Attributes:
        counts: samples of every rank.
        offset: index of this rank's first sample in the global batch.
        total: n, samples of all ranks.
    """

    def __init__(self, local: int, device: torch.device, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.size = dist.get_world_size(group) if dist.is_initialized() else 1
        if self.size == 1:
            self.counts, self.offset = [local], 0
        else:
            counts = torch.zeros(self.size, dtype=torch.int64, device=device)
            counts[dist.get_rank(group)] = local
            dist.all_reduce(counts, group=group)
            self.counts = counts.tolist()
            self.offset = sum(self.counts[: dist.get_rank(group)])
        self.local = local
        self.total = sum(self.counts)

    def gather(self, local: Tensor) -> Tensor:
        """(n_r, d) of every rank -> (n, d)."""
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
        """The sum over the ranks of (n, d), of which each gets its own rows, (n_r, d)."""
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
        """The sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(value, group=self.group)
        return value

    def combine_lse(self, partial: Tensor) -> Tensor:
        """Log-sum-exp over the ranks, element by element."""
        if self.size == 1:
            return partial
        largest = partial.clone()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group)
        return largest + self.sum((partial - largest).exp_()).log_()
