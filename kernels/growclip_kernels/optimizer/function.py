"""The optimizer updates: validate their arguments and dispatch to the device's implementation.

LAMB takes two calls, each one pass over the shard, since ranks that share a tensor sum their squares in between.
Memory traffic per element, with the Triton kernels, in bytes: AdamW 28 (reads weight, gradient and moments, writes
weight and moments); LAMB 28 (the same, but writes its direction instead of the weight) and 12.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from growclip_kernels.dispatch import interpreted, uses_triton
from growclip_kernels.optimizer import torch_path
from growclip_kernels.optimizer.regions import Buffers, Regions


def adamw(
    buffers: Buffers,
    regions: Regions,
    steps: Sequence[int],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, Algorithm 2), in place and only in the regions.

    w ← w - lr · weight_decay · w - lr · m̂ / (√v̂ + eps). Only matrices decay. The gradient may be overwritten.

    Args:
        buffers: the shard's weights, gradients and moments.
        regions: the part of each tensor to update.
        steps: number of updates of each tensor, including this one.
        lr, betas, eps, weight_decay: AdamW's hyper-parameters.

    Raises:
        ValueError: the buffers differ in length or device or are not dense fp32; a region exceeds their end; or
            `steps` does not have one entry per tensor.
    """
    _check(buffers, regions, steps)
    _path(buffers.weight).adamw(buffers, regions, steps, lr, betas, eps, weight_decay)


def lamb_direction(
    buffers: Buffers,
    regions: Regions,
    steps: Sequence[int],
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> Tensor:
    """First half of LAMB (You et al. 2020, Algorithm 2): updates the moments and replaces gradients by directions.

    u = m̂ / (√v̂ + eps) + weight_decay · w, the last term for matrices only. See `adamw` for arguments and errors.

    Returns:
        (tensors, 2) fp64: the shard's sums of squares of w and of u; 0 for tensors that are not matrices.
    """
    _check(buffers, regions, steps)
    return _path(buffers.weight).lamb_direction(buffers, regions, steps, betas, eps, weight_decay)


def trust_ratios(squares: Tensor) -> Tensor:
    """LAMB's trust ratios ‖w‖ / ‖u‖, (tensors,) fp32: not clamped, and 1 where a norm is 0.

    Args:
        squares: (tensors, 2) fp64, the result of `lamb_direction`, summed over the ranks.
    """
    norms = squares.sqrt()
    return torch.where((norms > 0).all(1), norms[:, 0] / norms[:, 1], 1.0).float()


def lamb_apply(buffers: Buffers, regions: Regions, ratios: Tensor, lr: float) -> None:
    """Second half of LAMB: w ← w - lr · ratio · u, with the direction u that `lamb_direction` wrote over the gradient.

    Args:
        buffers: the shard, as `lamb_direction` left it.
        regions: the part of each tensor to update.
        ratios: (tensors,) fp32, the result of `trust_ratios`.
        lr: learning rate.
    """
    _path(buffers.weight).lamb_apply(buffers, regions, ratios, lr)


def _path(flat: Tensor) -> ModuleType:
    # An offloaded shard is on the CPU and uses PyTorch, even where GROWCLIP_KERNELS=triton applies to the GPU.
    if (flat.device.type != "cpu" or interpreted()) and uses_triton(flat.device):
        from growclip_kernels.optimizer import triton_path

        return triton_path
    return torch_path


def _check(buffers: Buffers, regions: Regions, steps: Sequence[int]) -> None:
    first = buffers.weight
    for name, buffer in buffers._asdict().items():
        if buffer.shape != first.shape or buffer.dim() != 1 or buffer.dtype != torch.float32:
            raise ValueError(f"{name} must be ({first.numel()},) fp32, not {tuple(buffer.shape)} {buffer.dtype}")
        if buffer.device != first.device or not buffer.is_contiguous():
            raise ValueError(f"{name} must be dense and on {first.device}, like the weight")
    if regions.end > first.numel():
        raise ValueError(f"regions extend to element {regions.end}, but the shard has {first.numel()}")
    if len(steps) != len(regions):
        raise ValueError(f"steps must have one entry per tensor ({len(regions)}), not {len(steps)}")
