"""The updates with Triton kernels: one launch for all regions of a shard, and one more for LAMB's sums of squares.

The host never synchronises with the device. See `function` for arguments and results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from growclip_kernels.optimizer.kernels import adamw_kernel, lamb_apply_kernel, lamb_direction_kernel, squares_kernel
from growclip_kernels.optimizer.regions import BLOCK, Buffers, Regions, to_device

WARPS = 8
SUM_BLOCK = 512  # partial sums added at a time
SUM_WARPS = 4


def adamw(
    buffers: Buffers,
    regions: Regions,
    steps: Sequence[int],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    tables = regions.tables(buffers.weight.device)
    if tables.blocks:
        numbers = _numbers(regions, steps, lr, betas, weight_decay, buffers.weight.device)
        with torch.cuda.device_of(buffers.weight):
            adamw_kernel[(tables.blocks,)](
                *buffers, tables.spans, tables.span_of, numbers, *_constants(betas), eps, BLOCK=BLOCK, num_warps=WARPS
            )


def lamb_direction(
    buffers: Buffers,
    regions: Regions,
    steps: Sequence[int],
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> Tensor:
    weight = buffers.weight
    squares = torch.empty(len(regions), 2, dtype=torch.float64, device=weight.device)
    tables = regions.tables(weight.device)
    if not tables.blocks:
        return squares.zero_()
    partials = torch.empty(2, tables.blocks, dtype=torch.float32, device=weight.device)
    numbers = _numbers(regions, steps, 0.0, betas, weight_decay, weight.device)
    with torch.cuda.device_of(weight):
        lamb_direction_kernel[(tables.blocks,)](
            *buffers, partials, tables.spans, tables.span_of, numbers, *_constants(betas), eps,
            BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
        squares_kernel[(len(regions),)](
            partials, tables.first_block, tables.is_matrix, squares, tables.blocks,
            BLOCK=SUM_BLOCK, num_warps=SUM_WARPS,
        )  # fmt: skip
    return squares


def lamb_apply(buffers: Buffers, regions: Regions, ratios: Tensor, lr: float) -> None:
    tables = regions.tables(buffers.weight.device)
    if tables.blocks:
        with torch.cuda.device_of(buffers.weight):
            lamb_apply_kernel[(tables.blocks,)](
                buffers.weight, buffers.gradient, ratios * lr, tables.spans, tables.span_of,
                BLOCK=BLOCK, num_warps=WARPS,
            )  # fmt: skip


def _constants(betas: tuple[float, float]) -> tuple[float, float, float]:
    return 1 - betas[0], betas[1], 1 - betas[1]


def _numbers(
    regions: Regions,
    steps: Sequence[int],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    device: torch.device,
) -> Tensor:
    """The kernels' `numbers`, (tensors, 4) fp32, computed in double precision."""
    rows = [
        (1 / (1 - betas[0] ** step), 1 / math.sqrt(1 - betas[1] ** step), weight_decay * region.is_matrix, lr)
        for region, step in zip(regions.regions, steps, strict=True)
    ]
    return to_device(torch.tensor(rows, dtype=torch.float32), device)
