"""What a kernel should take on a GPU, from what it does and what it compiles to; to be held against measurements.

A program's parts - bytes through memory, matrix products with the padding of their tiles, exponentials, other
arithmetic on scores - each take their cycles on a multiprocessor. With one program a multiprocessor they follow each
other; with P, the longest hides the others but for one P-th. Launches, the last wave and waits at barriers are left
out, so a prediction errs on the short side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from growclip_kernels.packed_attention.plan import OnChip, plan
from growclip_kernels.resources import Resources


@dataclass(frozen=True)
class Chip:
    """Rates of a GPU; a multiprocessor's a clock cycle where nothing else is said.

    Attributes:
        multiprocessors: of the chip.
        clock: cycles a second under load.
        copy: bytes a second that a copy reads and writes, the whole chip.
        products: dense bf16 operations with the chip's newest matrix instruction.
        older_products: the same with mma.sync.
        exponentials, arithmetic: results of the special-function and the fp32 units.
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
        """Of memory traffic that a multiprocessor's share allows a cycle."""
        return self.copy / self.multiprocessors / self.clock


# Copy rate as measured on one (4.3 TB/s), its products' rate by the data sheet (989 TFLOP/s at 1.83 GHz); that mma.sync
# reaches three fifths of it is an assumption.
H200 = Chip(132, 1.83e9, 4.3e12, products=4096, older_products=2458)


@dataclass(frozen=True)
class Work:
    """What programs do: bytes, operations of matrix products, exponentials, other operations on scores."""

    bytes: float
    products: float
    exponentials: float
    arithmetic: float

    def seconds(self, chip: Chip, used: Resources) -> float:
        """Spread over the whole chip."""
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
    """Forward and backward work of the sequences that a launch on chip serves, bf16."""
    forward, backward = [0.0] * 3, [0.0] * 3
    for length in lengths:
        if not shorter < length <= tiles.longest:
            continue
        scores = math.ceil(length / tiles.forward.queries) * tiles.forward.queries * tiles.forward.keys
        forward = [forward[0] + 4 * 128 * length, forward[1] + 4 * 64 * scores, forward[2] + scores]
        scores = math.ceil(length / tiles.backward.keys) * tiles.backward.keys * tiles.backward.queries
        backward = [backward[0] + 8 * 128 * length, backward[1] + 10 * 64 * scores, backward[2] + scores]
    # Operations a score beside products and exponential, counted in the kernels' source: scale, mask, maximum,
    # subtraction, sum, conversion forwards; backwards no maximum and sum, but two products and two conversions.
    return (
        Work(forward[0] * heads, forward[1] * heads, forward[2] * heads, 6 * forward[2] * heads),
        Work(backward[0] * heads, backward[1] * heads, backward[2] * heads, 8 * backward[2] * heads),
    )


def attention_seconds(
    lengths: list[int], heads: int, chip: Chip, used: dict[tuple[int, str], Resources], capability: tuple[int, int]
) -> tuple[float, float]:
    """Forward and backward seconds of a bf16 batch.

    Args:
        used: by longest sequence and "forward" or "backward", what the kernels on chip compile to.

    Raises:
        ValueError: a sequence that no kernel holds whole.
    """
    import torch

    totals = [0.0, 0.0]
    for launch in plan(sum(lengths), len(lengths), max(lengths), torch.bfloat16, capability):
        if not isinstance(launch.tiles, OnChip):
            raise ValueError(f"{max(lengths)} tokens are more than is predicted for")
        for index, work in enumerate(attention_work(lengths, heads, launch.tiles, launch.shorter)):
            name = ("forward", "backward")[index]
            totals[index] += work.seconds(chip, used[launch.tiles.longest, name])
    return totals[0], totals[1]


LIBRARY_PRODUCTS = 788e12  # operations a second of a large bf16 product on an H200, measured


def contrastive_seconds(n: int, d: int, chip: Chip, forward: Resources, gradient: Resources) -> tuple[float, float]:
    """Forward and backward seconds of the fused design on one GPU, bf16: n pairs of d features."""
    scores, products = float(n * n), 2.0 * n * n * d
    # Two exponentials a score each way; some ten further operations on it. The features are read from the cache.
    score_pass = Work(0, products, 2 * scores, 10 * scores).seconds(chip, forward)
    gradient_pass = Work(2 * scores, products, 2 * scores, 10 * scores).seconds(chip, gradient)
    library = max(2 * products / LIBRARY_PRODUCTS, 4 * scores / chip.copy)
    return score_pass, gradient_pass + library
