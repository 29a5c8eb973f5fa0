"""Predicts a kernel's time on a GPU from its work and its compiled resources, for comparison with measurements.

A program's parts - memory traffic, matrix products including the padding of their tiles, exponentials, other arithmetic
on scores - each take a number of cycles on a multiprocessor. With one program per multiprocessor they run one after the
other; with P programs, the longest hides all but one P-th of the others. Launches, the last wave and waits at barriers
are ignored, so predictions are too short rather than too long.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from growclip_kernels.packed_attention.plan import OnChip, plan
from growclip_kernels.resources import Resources


@dataclass(frozen=True)
class Chip:
    """Rates of a GPU, per multiprocessor and clock cycle unless stated otherwise.

    Attributes:
        multiprocessors: number of multiprocessors.
        clock: cycles per second under load.
        copy: bytes per second, read plus written, of a copy by the whole chip.
        products: dense bf16 operations with wgmma.
        older_products: dense bf16 operations with mma.sync.
        exponentials, arithmetic: results of the special-function units and of the fp32 units.
    """

    multiprocessors: int
    clock: float
    copy: float
    products: float
    older_products: float
    exponentials: float = 16
    arithmetic: float = 128

    @property
    def bytes(self) -> float:
        """A multiprocessor's share of memory traffic, in bytes per cycle."""
        return self.copy / self.multiprocessors / self.clock


# The copy rate was measured (4.3 TB/s), the rate of products is the data sheet's (989 TFLOP/s at 1.83 GHz); that
# mma.sync reaches three fifths of it is an assumption.
H200 = Chip(132, 1.83e9, 4.3e12, products=4096, older_products=2458)


@dataclass(frozen=True)
class Work:
    """Work of a launch: bytes, operations of matrix products, exponentials, other operations on scores."""

    bytes: float
    products: float
    exponentials: float
    arithmetic: float

    def seconds(self, chip: Chip, used: Resources) -> float:
        """Predicted duration, with the work spread over the whole chip."""
        rate = chip.products if "wgmma" in used.matrix_instruction else chip.older_products
        parts = [
            self.bytes / chip.bytes,
            self.products / rate,
            self.exponentials / chip.exponentials,
            self.arithmetic / chip.arithmetic,
        ]
        longest = max(parts)
        return (longest + (sum(parts) - longest) / used.programs) / chip.multiprocessors / chip.clock


def attention_work(lengths: Iterable[int], heads: int, tiles: OnChip, shorter: int) -> tuple[Work, Work]:
    """Forward and backward work of the sequences that an on-chip launch handles, in bf16."""
    forward, backward = [0.0] * 3, [0.0] * 3
    for length in lengths:
        if not shorter < length <= tiles.longest:
            continue
        scores = math.ceil(length / tiles.forward.queries) * tiles.forward.queries * tiles.forward.keys
        forward = [forward[0] + 4 * 128 * length, forward[1] + 4 * 64 * scores, forward[2] + scores]
        scores = math.ceil(length / tiles.backward.keys) * tiles.backward.keys * tiles.backward.queries
        backward = [backward[0] + 8 * 128 * length, backward[1] + 10 * 64 * scores, backward[2] + scores]
    # Operations per score besides products and exponentials, counted in the kernels' source. Forward: scale, mask,
    # maximum, subtraction, sum, conversion. Backward: no maximum and sum, but two products and two conversions.
    return (
        Work(forward[0] * heads, forward[1] * heads, forward[2] * heads, 6 * forward[2] * heads),
        Work(backward[0] * heads, backward[1] * heads, backward[2] * heads, 8 * backward[2] * heads),
    )


def attention_seconds(
    lengths: list[int], heads: int, chip: Chip, used: dict[tuple[int, str], Resources], capability: tuple[int, int]
) -> tuple[float, float]:
    """Predicted forward and backward seconds of a bf16 batch.

    Args:
        lengths: lengths of the sequences, in tokens.
        heads: number of heads.
        chip: the GPU.
        used: resources of the on-chip kernels, by longest sequence and "forward" or "backward".
        capability: compute capability that the tiles are chosen for.

    Raises:
        ValueError: no on-chip kernel holds the longest sequence.
    """
    import torch

    totals = [0.0, 0.0]
    for launch in plan(sum(lengths), len(lengths), max(lengths), torch.bfloat16, capability):
        if not isinstance(launch.tiles, OnChip):
            raise ValueError(f"a sequence of {max(lengths)} tokens does not fit on chip, and only on-chip is predicted")
        for index, work in enumerate(attention_work(lengths, heads, launch.tiles, launch.shorter)):
            name = ("forward", "backward")[index]
            totals[index] += work.seconds(chip, used[launch.tiles.longest, name])
    return totals[0], totals[1]


LIBRARY_PRODUCTS = 788e12  # operations per second of a large bf16 product on an H200, measured


def contrastive_seconds(n: int, d: int, chip: Chip, forward: Resources, gradient: Resources) -> tuple[float, float]:
    """Predicted forward and backward seconds of the fused loss on one GPU, for n pairs of d bf16 features."""
    scores, products = float(n * n), 2.0 * n * n * d
    # Two exponentials and about ten other operations per score in each pass. The features are read from the cache.
    score_pass = Work(0, products, 2 * scores, 10 * scores).seconds(chip, forward)
    gradient_pass = Work(2 * scores, products, 2 * scores, 10 * scores).seconds(chip, gradient)
    library = max(2 * products / LIBRARY_PRODUCTS, 4 * scores / chip.copy)
    return score_pass, gradient_pass + library
