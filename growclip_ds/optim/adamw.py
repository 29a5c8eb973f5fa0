"""AdamW (Loshchilov & Hutter 2019) for sharded parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from growclip_ds.optim.subnet import ActiveTensor, SubnetOptimizer
from growclip_ds.zero_shards import FlatShard


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

    def update(self, shard: FlatShard, tensors: list[ActiveTensor], group: dict[str, Any]) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        for tensor in tensors:
            for weight, gradient, exp_avg, exp_avg_sq in tensor.parts:
                exp_avg.lerp_(gradient, 1 - beta1)
                exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                denominator = torch.sqrt(exp_avg_sq, out=gradient)  # the gradient is no longer needed
                denominator.div_(math.sqrt(1 - beta2**tensor.step)).add_(group["eps"])
                if tensor.is_matrix:
                    weight.mul_(1 - lr * group["weight_decay"])
                weight.addcdiv_(exp_avg, denominator, value=-lr / (1 - beta1**tensor.step))
