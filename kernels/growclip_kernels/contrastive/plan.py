"""Tiles and blocks: the part of the matrix of scores that a program computes, and the part that is in work at a time.

Tiles were chosen to compile without spills and, for 16-bit softmax on Hopper, to leave room for two programs per
multiprocessor, so that one multiplies while the other exponentiates. Block sizes follow from n and d, so that memory
beyond the features is O(n · d).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

Loss = Literal["softmax", "sigmoid"]
# Fused: a program computes the scores of its tile. Chunked: a library's matmul writes a block of scores, which adds 8
# bytes of memory traffic per score to each pass. Fused is predicted to be faster; neither has been measured.
Design = Literal["fused", "chunked"]

LARGEST = 8192  # most rows or columns of a block: products of this size keep every multiprocessor busy
LONGEST = 1 << 21  # most columns of a launch, whose grid is limited to 65,535 tiles in that dimension


@dataclass(frozen=True)
class Tile:
    """Size and launch options of a program.

    Attributes:
        rows, columns: shape of the tile of scores.
        depth: features per step of its product.
        warps, stages: launch options.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


FP32 = Tile(128, 64, 32, warps=8, stages=3)
SIGMOID = Tile(128, 64, 64, warps=8, stages=3)
HOPPER = Tile(128, 128, 64, warps=8, stages=3)
AMPERE = Tile(128, 128, 32, warps=8, stages=4)
CHUNKED = Tile(64, 128, 64, warps=8, stages=1)  # computes no product


def tile(loss: Loss, dtype: torch.dtype, capability: tuple[int, int], design: Design) -> Tile:
    """The tile of a kernel. Except on Hopper, it fits into 99 KiB, the least shared memory of devices from sm_80 on."""
    if design == "chunked":
        return CHUNKED
    if dtype == torch.float32:
        return FP32
    if loss == "sigmoid":
        return SIGMOID
    return HOPPER if capability[0] == 9 else AMPERE


def precision(dtype: torch.dtype) -> str:
    """Input precision of products: for fp32, three tf32 products, about as precise as fp32 and several times faster."""
    return "tf32x3" if dtype == torch.float32 else "ieee"


def grain_bits(dtype: torch.dtype) -> int:
    """The power of two that scales G before it is rounded: G is about 1/n for n captions, subnormal in fp16."""
    return 15 if dtype == torch.float16 else 0


def forward_block(rows: int, columns: int, d: int) -> tuple[int, int]:
    """Rows and columns covered by a launch of the fused forward pass, which stores only partial results.

    With tiles of 128 · 64 or more, these are at most rows · columns · 3/128 numbers, that is, 3/4 · columns · d.
    """
    return min(rows, LARGEST, _down(32 * d)), min(columns, LONGEST)


def score_block(rows: int, columns: int, d: int) -> tuple[int, int]:
    """Rows and columns of the block of G, or of scores, of which one is in memory at a time.

    It holds up to as many numbers as two sets of features, 2 · columns · d, and at least one tile. It is as square as
    possible, which minimises the reads of the products with the features.
    """
    most = 2 * columns * d
    height = min(_up(rows), LARGEST, _down(math.isqrt(most)))
    width = min(_up(columns), LARGEST, _down(most // height))
    return _even(rows, height), _even(columns, width)


def blocks(rows: int, columns: int, block: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Yields the row and column slices of every block of the matrix, in row-major order."""
    for row in range(0, rows, block[0]):
        for column in range(0, columns, block[1]):
            yield slice(row, min(row + block[0], rows)), slice(column, min(column + block[1], columns))


def _up(size: int) -> int:
    return -(-size // 128) * 128


def _down(size: int) -> int:
    return max(size // 128 * 128, 128)


def _even(size: int, most: int) -> int:
    """The size of near-equal blocks of up to `most` that cover `size`, which avoids a small last block."""
    return _up(-(-size // -(-size // most)))
