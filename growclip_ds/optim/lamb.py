"""LAMB (You et al. 2020, Algorithm 2) for sharded parameters."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from growclip_ds.optim.subnet import ActiveTensors, SubnetOptimizer
from growclip_ds.optim.zero_shards import FlatShard
from growclip_kernels.optimizer import Buffers, lamb_apply, lamb_direction, trust_ratios


class Lamb(SubnetOptimizer):
    """Adam's update plus weight decay, scaled per tensor to the norm of the weights.

    u = m̂ / (√v̂ + eps) + weight_decay · w, then w ← w - lr · (‖w‖ / ‖u‖) · u, with bias-corrected moments. Norms cover
    the whole sampled slice of a tensor: ranks sum the squares of their pieces in one all-reduce of two numbers per
    tensor. The trust ratio ‖w‖ / ‖u‖ is not clamped, and is 1 if either norm is 0. One-dimensional tensors (norms,
    biases, the temperature) have neither trust ratio nor weight decay. Gradients are not normalised beforehand.
    """

    def update(
        self, shard: FlatShard, buffers: Buffers, tensors: ActiveTensors, steps: list[int], group: dict[str, Any]
    ) -> None:
        squares = lamb_direction(buffers, tensors.regions, steps, group["betas"], group["eps"], group["weight_decay"])
        reduced = squares.to(shard.device)
        dist.all_reduce(reduced, group=shard.group)
        ratios = trust_ratios(reduced).to(squares.device)
        lamb_apply(buffers, tensors.regions, ratios, group["lr"])
