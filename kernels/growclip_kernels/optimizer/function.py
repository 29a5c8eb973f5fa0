"""The optimizer updates: arguments are validated and dispatched to the device's implementation.

LAMB takes two calls, since ranks that share tensors add up their squares in between; each is one pass over the shard.
Memory traffic per element, with Triton's kernels, in bytes: AdamW 28 (reads weight, gradient and moments, writes weight
and moments); LAMB 28 (the same, but writes its direction instead of the weight) and 12.
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
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, Algorithm 2), in place, in the regions alone.

    w ← w - lr · weight_decay · w - lr · m̂ / (√v̂ + eps). Tensors that are no matrices do not decay.

    Args:
        buffers: the shard.
        regions: what is updated of each tensor.
        steps: updates that each tensor has had, this one included.

    Raises:
        ValueError: buffers that are not of one length, fp32, dense and on one device; regions beyond their end.
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
    """First half of LAMB (You et al. 2020, Algorithm 2): moves the moments on and turns gradients into directions.

    u = m̂ / (√v̂ + eps) + weight_decay · w, the last term of matrices alone. Arguments and errors as of `adamw`.

    Returns:
        (tensors, 2) fp64: the shard's sums of the squares of w and of u; 0 for tensors that are no matrices.
    """
    _check(buffers, regions, steps)
    return _path(buffers.weight).lamb_direction(buffers, regions, steps, betas, eps, weight_decay)


def trust_ratios(squares: Tensor) -> Tensor:
    """‖w‖ / ‖u‖, (tensors,) fp32: not clamped, and 1 where a norm is 0.

    Args:
        squares: (tensors, 2) fp64, of `lamb_direction`, added up over the ranks.
    """
    norms = squares.sqrt()
    return torch.where((norms > 0).all(1), norms[:, 0] / norms[:, 1], 1.0).float()


def lamb_apply(buffers: Buffers, regions: Regions, ratios: Tensor, lr: float) -> None:
    """Second half of LAMB: w ← w - lr · ratio · u, with the u that `lamb_direction` left in the gradient.

    Args:
        ratios: (tensors,) fp32, of `trust_ratios`.
    """
    _path(buffers.weight).lamb_apply(buffers, regions, ratios, lr)


def _path(flat: Tensor) -> ModuleType:
    # A shard that is offloaded lies on the CPU, whatever GROWCLIP_KERNELS asks for elsewhere.
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
        raise ValueError(f"regions reach to element {regions.end}, but the shard has {first.numel()}")
    if len(steps) != len(regions):
        raise ValueError(f"{len(steps)} numbers of updates for {len(regions)} tensors")
