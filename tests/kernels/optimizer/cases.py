"""Flat shards with regions of all kinds, and what an update should make of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from growclip_kernels.optimizer import Buffers, Region, Regions, Span
from growclip_kernels.optimizer.regions import BLOCK
from tests.kernels.device import DEVICE

BETAS, EPS, DECAY, LR = (0.9, 0.98), 1e-6, 0.1, 0.03

# Each with its region: whole tensors, leading rows and columns, cut in the middle of rows, of several spans, of one
# element, none at all, and some that end one before, at and one behind a block's end.
REGIONS = [
    Region((Span(0, 1, 1, 1),), False),
    Region((Span(3, 1, BLOCK, BLOCK),), True),
    Region((Span(BLOCK + 3, 1, BLOCK + 1, BLOCK + 1),), True),
    Region((), True),
    Region((Span(2 * BLOCK + 10, 5, 7, 11),), True),
    Region((Span(2 * BLOCK + 70, 1, 3, 3), Span(2 * BLOCK + 80, 90, 31, 40), Span(2 * BLOCK + 3680, 1, 13, 13)), True),
    Region((Span(2 * BLOCK + 3700, 1, BLOCK - 1, BLOCK - 1),), False),
    Region((Span(3 * BLOCK + 3700, 3, BLOCK + 5, 2 * BLOCK),), True),
    Region((Span(9 * BLOCK + 3710, 4000, 1, 3),), True),
    Region((Span(9 * BLOCK + 3711, 4000, 1, 3),), False),  # between the last one's elements
]
STEPS = [1, 2, 3, 4, 5, 1000, 7, 8, 100_000, 3]
SIZE = 9 * BLOCK + 3710 + 12_000 + 50


def buffers(size: int = SIZE, seed: int = 0, device: torch.device = DEVICE) -> Buffers:
    generator = torch.Generator().manual_seed(seed)
    weight, gradient, exp_avg = torch.randn(3, size, generator=generator)
    drawn = weight, gradient.mul_(0.1), exp_avg.mul_(0.1), torch.rand(size, generator=generator).mul_(0.01)
    return Buffers(*(buffer.to(device) for buffer in drawn))


def indices(region: Region, size: int) -> Tensor:
    """The region's elements, in order."""
    return torch.cat([torch.empty(0, dtype=torch.int64), *(s.of(torch.arange(size)).flatten() for s in region.spans)])


def expected(optimizer: str, given: Buffers, regions: Regions, steps: Sequence[int]) -> tuple[Buffers, Tensor]:
    """By the book in float64, with all regions on this rank: buffers after the update, and the sums of squares.

    Both on the CPU, wherever the buffers given are.
    For LAMB the gradient is the direction; AdamW leaves it undefined.
    """
    before = [buffer.cpu().double() for buffer in given]
    after = Buffers(*(buffer.clone() for buffer in before))
    squares = torch.zeros(len(regions), 2, dtype=torch.float64)
    for index, (region, step) in enumerate(zip(regions.regions, steps, strict=True)):
        at = indices(region, given.weight.numel())
        w, g, m, v = (buffer[at] for buffer in before)
        m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g * g
        u = m / (1 - BETAS[0] ** step) / ((v / (1 - BETAS[1] ** step)).sqrt() + EPS)
        ratio = 1.0
        if region.is_matrix:
            u = u + DECAY * w
            if optimizer == "lamb":
                squares[index] = torch.stack([w.square().sum(), u.square().sum()])
                norms = math.sqrt(squares[index, 0]), math.sqrt(squares[index, 1])
                ratio = norms[0] / norms[1] if all(norms) else 1.0
        for buffer, value in zip(after, (w - LR * ratio * u, u, m, v), strict=True):
            buffer[at] = value
    return after, squares
