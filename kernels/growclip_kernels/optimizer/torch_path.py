"""The updates with PyTorch operators, one span at a time and without extra memory: the reference for the kernels.

See `function` for arguments and results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from growclip_kernels.optimizer.regions import Buffers, Regions

ROW = 4096  # elements summed in fp32


def adamw(
    buffers: Buffers,
    regions: Regions,
    steps: Sequence[int],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    for region, step in zip(regions.regions, steps, strict=True):
        for span in region.spans:
            weight, gradient, exp_avg, exp_avg_sq = buffers.of(span)
            _move_moments(gradient, exp_avg, exp_avg_sq, betas)
            denominator = _denominator(gradient, exp_avg_sq, betas[1], step, eps)
            if region.is_matrix:
                weight.mul_(1 - lr * weight_decay)
            weight.addcdiv_(exp_avg, denominator, value=-lr / (1 - betas[0] ** step))


def lamb_direction(
    buffers: Buffers,
    regions: Regions,
    steps: Sequence[int],
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> Tensor:
    squares = torch.zeros(len(regions), 2, dtype=torch.float64, device=buffers.weight.device)
    for square, region, step in zip(squares, regions.regions, steps, strict=True):
        for span in region.spans:
            weight, gradient, exp_avg, exp_avg_sq = buffers.of(span)
            _move_moments(gradient, exp_avg, exp_avg_sq, betas)
            denominator = _denominator(gradient, exp_avg_sq, betas[1], step, eps)
            direction = torch.div(exp_avg, denominator, out=gradient)
            direction.div_(1 - betas[0] ** step)
            if region.is_matrix:
                direction.add_(weight, alpha=weight_decay)
                square[0] += _square(weight)
                square[1] += _square(direction)
    return squares


def lamb_apply(buffers: Buffers, regions: Regions, ratios: Tensor, lr: float) -> None:
    for ratio, region in zip(ratios, regions.regions, strict=True):
        for span in region.spans:
            weight, direction, _, _ = buffers.of(span)
            weight.addcmul_(direction, ratio, value=-lr)


def _move_moments(gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, betas: tuple[float, float]) -> None:
    exp_avg.lerp_(gradient, 1 - betas[0])
    exp_avg_sq.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])


def _denominator(gradient: Tensor, exp_avg_sq: Tensor, beta2: float, step: int, eps: float) -> Tensor:
    """√v̂ + eps, written over the gradient, which is no longer needed."""
    return torch.sqrt(exp_avg_sq, out=gradient).div_(math.sqrt(1 - beta2**step)).add_(eps)


def _square(values: Tensor) -> Tensor:
    """Squared norm: fp32 norms of rows of a few thousand elements, several times faster than fp64, summed in fp64."""
    rows = [values]
    if values.dim() == 1:
        whole = values.numel() // ROW * ROW
        rows = [values[:whole].view(-1, ROW), values[whole:].view(1, -1)]
    return torch.stack([torch.linalg.vector_norm(part, dim=1).double().square().sum() for part in rows]).sum()
