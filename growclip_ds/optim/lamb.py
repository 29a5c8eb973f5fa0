"""LAMB (You et al. 2020, Algorithm 2) for sharded parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from growclip_ds.optim.subnet import ActiveTensor, Part, SubnetOptimizer
from growclip_ds.zero_shards import FlatShard

ROW = 4096  # elements


class Lamb(SubnetOptimizer):
    """Adam's update plus weight decay, scaled tensor by tensor to the norm of the weights.

    u = m̂ / (√v̂ + eps) + weight_decay · w, then w ← w - lr · (‖w‖ / ‖u‖) · u, moments bias-corrected. Norms are taken
    over the whole sampled slice of a tensor, wherever its pieces lie: ranks add up their squares in one all-reduce of
    two numbers a tensor. The ratio is not clamped, and is 1 where a norm is 0. One-dimensional tensors (norms, biases,
    the temperature) have neither trust ratio nor weight decay. Gradients are not normalised beforehand.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-4,
        upper_bounds: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, upper_bounds)

    def update(self, shard: FlatShard, tensors: list[ActiveTensor], group: dict[str, Any]) -> None:
        matrices = [tensor for tensor in tensors if tensor.is_matrix]
        squares = torch.zeros(len(matrices), 2, dtype=torch.float64, device=shard.flat.device)
        for tensor in tensors:
            for part in tensor.parts:
                _direction(part, tensor, group)
        for square, tensor in zip(squares, matrices, strict=True):
            for part in tensor.parts:
                square[0] += _square(part.weight)
                square[1] += _square(part.gradient)
        if matrices:
            reduced = squares.to(shard.device)
            dist.all_reduce(reduced, group=shard.group)
            squares.copy_(reduced)
        norms = squares.sqrt_()
        ratios = torch.where((norms > 0).all(1), norms[:, 0] / norms[:, 1], 1.0).to(shard.flat.dtype)
        for ratio, tensor in zip(ratios, matrices, strict=True):
            for part in tensor.parts:
                part.weight.addcmul_(part.gradient, ratio, value=-group["lr"])
        for tensor in tensors:
            if not tensor.is_matrix:
                for part in tensor.parts:
                    part.weight.add_(part.gradient, alpha=-group["lr"])


def _direction(part: Part, tensor: ActiveTensor, group: dict[str, Any]) -> None:
    """Moves the moments on and turns the gradient, in its own memory, into u."""
    weight, gradient, exp_avg, exp_avg_sq = part
    beta1, beta2 = group["betas"]
    exp_avg.lerp_(gradient, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    torch.sqrt(exp_avg_sq, out=gradient)
    gradient.div_(math.sqrt(1 - beta2**tensor.step)).add_(group["eps"])
    torch.div(exp_avg, gradient, out=gradient)
    gradient.div_(1 - beta1**tensor.step)
    if tensor.is_matrix and group["weight_decay"]:
        gradient.add_(weight, alpha=group["weight_decay"])


def _square(values: Tensor) -> Tensor:
    """Squared norm in fp64: of rows of some thousand elements in fp32, which is several times as fast, then summed."""
    rows = [values]
    if values.dim() == 1:
        whole = values.numel() // ROW * ROW
        rows = [values[:whole].view(-1, ROW), values[whole:].view(1, -1)]
    return torch.stack([torch.linalg.vector_norm(part, dim=1).double().square().sum() for part in rows]).sum()
