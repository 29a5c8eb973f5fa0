"""AdamW (Loshchilov & Hutter 2019) for sharded parameters."""

from __future__ import annotations

from typing import Any

from growclip_ds.optim.subnet import ActiveTensors, SubnetOptimizer
from growclip_ds.optim.zero_shards import FlatShard
from growclip_kernels.optimizer import Buffers, adamw


class AdamW(SubnetOptimizer):
    """Adam with decoupled weight decay; one-dimensional tensors (norms, biases, the temperature) are not decayed."""

    def update(
        self, shard: FlatShard, buffers: Buffers, tensors: ActiveTensors, steps: list[int], group: dict[str, Any]
    ) -> None:
        adamw(buffers, tensors.regions, steps, group["lr"], group["betas"], group["eps"], group["weight_decay"])
