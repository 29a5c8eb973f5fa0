"""Which kernels attend which sequences of a batch, with which tiles: chosen from what the host knows.

The tiles are those that compile without spills; their speed is predicted in docs/performance.md, not yet measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["ieee", "tf32x3"]


@dataclass(frozen=True)
class Tile:
    """Sizes of a tile of scores, and how its kernel is launched."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class OnChip:
    """For sequences held whole: all keys in the forward pass, all queries in the backward pass.

    Attributes:
        transposed: whether the backward pass makes the keys' and values' gradients transposed.
    """

    forward: Tile
    backward: Tile
    transposed: bool

    @property
    def longest(self) -> int:
        """The most tokens that fit."""
        return self.forward.keys


@dataclass(frozen=True)
class Looping:
    """For sequences of any length.

    Attributes:
        precision: of products of fp32 tiles; lower types have but one.
    """

    forward: Tile
    backward_queries: Tile
    backward_keys: Tile
    precision: Precision


HOPPER = (
    OnChip(Tile(32, 32, warps=1, stages=1), Tile(32, 32, warps=2, stages=1), transposed=False),
    OnChip(Tile(64, 64, warps=4, stages=1), Tile(64, 32, warps=4, stages=2), transposed=True),
    OnChip(Tile(64, 128, warps=4, stages=2), Tile(128, 32, warps=4, stages=2), transposed=True),
    OnChip(Tile(64, 256, warps=4, stages=2), Tile(256, 64, warps=8, stages=2), transposed=False),
)
AMPERE = (
    OnChip(Tile(32, 32, warps=1, stages=1), Tile(32, 32, warps=2, stages=1), transposed=False),
    OnChip(Tile(64, 64, warps=4, stages=1), Tile(64, 32, warps=4, stages=2), transposed=False),
    OnChip(Tile(64, 128, warps=4, stages=2), Tile(128, 32, warps=4, stages=1), transposed=False),
    OnChip(Tile(32, 256, warps=4, stages=2), Tile(256, 16, warps=8, stages=2), transposed=True),
)
# For programs that have 99 KiB of shared memory, too little to hold 256 keys or queries.
SMALL = (
    *AMPERE[:2],
    OnChip(Tile(64, 128, warps=4, stages=2), Tile(128, 16, warps=4, stages=1), transposed=False),
)
LOOPING = Looping(
    forward=Tile(128, 64, warps=8, stages=2),
    backward_queries=Tile(64, 64, warps=4, stages=2),
    backward_keys=Tile(64, 128, warps=8, stages=2),
    precision="ieee",
)
LOOPING_FP32 = Looping(
    forward=Tile(64, 32, warps=8, stages=2),
    backward_queries=Tile(32, 32, warps=4, stages=2),
    backward_keys=Tile(32, 32, warps=4, stages=2),
    precision="tf32x3",
)


@dataclass(frozen=True)
class Launch:
    """A launch serves the sequences longer than `shorter` and, if `tiles` hold sequences whole, up to their longest."""

    shorter: int
    tiles: OnChip | Looping


def on_chip_tiles(capability: tuple[int, int]) -> tuple[OnChip, ...]:
    """Tiles of a device, the smallest first. The interpreter takes Hopper's.

    Desktop and inference cards (8.6, 8.9, 12.x), and what is not known here, take those for little shared memory.
    """
    if capability[0] in (9, 10):
        return HOPPER
    return AMPERE if capability in ((8, 0), (8, 7)) else SMALL


def plan(tokens: int, sequences: int, max_seqlen: int, dtype: torch.dtype, capability: tuple[int, int]) -> list[Launch]:
    """The launches that together serve every length from 1 to `max_seqlen` once.

    Args:
        tokens: T of the batch. Where it is sequences · max_seqlen, all are of that length, and one launch will do.
    """
    if dtype == torch.float32:
        return [Launch(0, LOOPING_FP32)]
    launches: list[Launch] = []
    shorter = 0
    for tiles in on_chip_tiles(capability):
        if shorter < max_seqlen:
            launches.append(Launch(shorter, tiles))
        shorter = tiles.longest
    if shorter < max_seqlen:
        launches.append(Launch(shorter, LOOPING))
    return launches[-1:] if tokens == sequences * max_seqlen else launches
