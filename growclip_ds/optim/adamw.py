"""AdamW (Loshchilov & Hutter 2019) for sharded parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from growclip_ds.optim.subnet import ActiveTensors, SubnetOptimizer
from growclip_ds.optim.zero_shards import FlatShard
from growclip_kernels.optimizer import Buffers, adamw


class AdamW(SubnetOptimizer):
    """Adam with decoupled weight decay, which one-dimensional tensors (norms, biases, the temperature) do not have."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.2,
        upper_bounds: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, upper_bounds)

    def update(
        self, shard: FlatShard, buffers: Buffers, tensors: ActiveTensors, steps: list[int], group: dict[str, Any]
    ) -> None:
        adamw(buffers, tensors.regions, steps, group["lr"], group["betas"], group["eps"], group["weight_decay"])
