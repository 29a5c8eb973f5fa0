"""Chooses the kernels and tiles for the sequences of a batch, from what the host knows.

Tiles were chosen to compile without spills; their speed is predicted in docs/performance.md, not yet measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["ieee", "tf32x3"]


@dataclass(frozen=True)
class Tile:
    """Size of a tile of scores, and launch options of its kernel."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class OnChip:
    """Tiles of the kernels that hold a sequence whole: all keys in the forward pass, all queries in the backward pass.

    Attributes:
        transposed: whether the backward pass computes the keys' and values' gradients transposed.
    """

    forward: Tile
    backward: Tile
    transposed: bool

    @property
    def longest(self) -> int:
        """Length of the longest sequence that fits, in tokens."""
        return self.forward.keys


@dataclass(frozen=True)
class Looping:
    """Tiles of the kernels for sequences of any length.

    Attributes:
        precision: input precision of products of fp32 tiles; ignored for 16-bit types.
    """

    forward: Tile
    backward_queries: Tile
    backward_keys: Tile
    precision: Precision


HOPPER = (
    OnChip(Tile(32, 32, warps=1, stages=1), Tile(32, 32, warps=2, stages=1), transposed=False),
    OnChip(Tile(64, 64, warps=4, stages=1), Tile(64, 32, warps=4, stages=2), transposed=True),
    OnChip(Tile(64, 128, warps=4, stages=2), Tile(128, 32, warps=4, stages=2), transposed=True),
    OnChip(Tile(64, 256, warps=4, stages=2), Tile(256, 32, warps=8, stages=2), transposed=True),
)
AMPERE = (
    OnChip(Tile(32, 32, warps=1, stages=1), Tile(32, 32, warps=2, stages=1), transposed=False),
    OnChip(Tile(64, 64, warps=4, stages=1), Tile(64, 32, warps=4, stages=2), transposed=False),
    OnChip(Tile(64, 128, warps=4, stages=2), Tile(128, 32, warps=4, stages=1), transposed=False),
    OnChip(Tile(32, 256, warps=4, stages=2), Tile(256, 16, warps=8, stages=2), transposed=True),
)
# For devices with 99 KiB of shared memory per program, too little to hold 256 keys or queries.
SMALL = AMPERE[:3]
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
    """A launch, for sequences longer than `shorter` and, if `tiles` hold sequences whole, up to `tiles.longest`."""

    shorter: int
    tiles: OnChip | Looping


def on_chip_tiles(capability: tuple[int, int]) -> tuple[OnChip, ...]:
    """The on-chip tiles for a device, smallest first. The interpreter uses Hopper's.

    Desktop and inference cards (8.6, 8.9, 12.x) and unknown devices get the tiles for little shared memory.
    """
    if capability[0] in (9, 10):
        return HOPPER
    return AMPERE if capability in ((8, 0), (8, 7)) else SMALL


def plan(tokens: int, sequences: int, max_seqlen: int, dtype: torch.dtype, capability: tuple[int, int]) -> list[Launch]:
    """The launches that together handle every length from 1 to `max_seqlen` exactly once.

    Args:
        tokens: T, number of tokens. If it is sequences · max_seqlen, all sequences have that length, and one launch
            suffices.
        sequences: number of sequences.
        max_seqlen: length of the longest sequence, or an upper bound of it.
        dtype: type of qkv.
        capability: compute capability of the device.
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
