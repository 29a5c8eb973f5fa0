"""Tiles and blocks: what a program computes, and how much of the matrix of scores is worked on at a time.

Tiles are those that compile without spills and, for 16-bit softmax on Hopper, leave room for two programs a
multiprocessor, so that one multiplies while the other exponentiates. Memory beyond the features is O(n · d): the sizes
of blocks follow from n and d.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

Loss = Literal["softmax", "sigmoid"]
# Fused: a program makes its tile's scores itself. Chunked: a library's product writes a block of scores, which moves 8
# bytes a score more through memory in each pass. Fused is the prediction until both are measured.
Design = Literal["fused", "chunked"]

LARGEST = 8192  # rows or columns of a block: products of this size keep every multiprocessor busy
LONGEST = 1 << 21  # columns of a launch: it may have 65,535 tiles in that direction


@dataclass(frozen=True)
class Tile:
    """What a program computes, and how.

    Attributes:
        rows, columns: scores of a tile.
        depth: features a step of its product.
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
CHUNKED = Tile(64, 128, 64, warps=8, stages=1)  # no product of its own


def tile(loss: Loss, dtype: torch.dtype, capability: tuple[int, int], design: Design) -> Tile:
    """The tile of a kernel. Those of other devices than Hopper's fit into the 99 KiB of the smallest from sm_80 on."""
    if design == "chunked":
        return CHUNKED
    if dtype == torch.float32:
        return FP32
    if loss == "sigmoid":
        return SIGMOID
    return HOPPER if capability[0] == 9 else AMPERE


def precision(dtype: torch.dtype) -> str:
    """How products are made: fp32 of three of tf32, about as precise as fp32's own and several times as fast."""
    return "tf32x3" if dtype == torch.float32 else "ieee"


def grain_bits(dtype: torch.dtype) -> int:
    """G times this power of two is rounded: among n captions it is about 1/n, which fp16 has no normal numbers for."""
    return 15 if dtype == torch.float16 else 0


def forward_block(rows: int, columns: int, d: int) -> tuple[int, int]:
    """Rows and columns that a launch of the fused forward pass goes over: only its partial results take memory.

    These are, with tiles of 128 · 64 at least, rows · columns · 3/128 numbers: 3/4 · columns · d at most.
    """
    return min(rows, LARGEST, _down(32 * d)), min(columns, LONGEST)


def score_block(rows: int, columns: int, d: int) -> tuple[int, int]:
    """Rows and columns of the one block of G, or of scores, that is in memory at a time.

    As many numbers as the two features have, 2 · columns · d, as near to a square as can be, for which the products
    with the features read least; of one tile at least.
    """
    most = 2 * columns * d
    height = min(_up(rows), LARGEST, _down(math.isqrt(most)))
    width = min(_up(columns), LARGEST, _down(most // height))
    return _even(rows, height), _even(columns, width)


def blocks(rows: int, columns: int, block: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """The matrix in blocks, row after row."""
    for row in range(0, rows, block[0]):
        for column in range(0, columns, block[1]):
            yield slice(row, min(row + block[0], rows)), slice(column, min(column + block[1], columns))


def _up(size: int) -> int:
    return -(-size // 128) * 128


def _down(size: int) -> int:
    return max(size // 128 * 128, 128)


def _even(size: int, most: int) -> int:
    """A block's size, of `most` at most, that leaves no small last block."""
    return _up(-(-size // -(-size // most)))
