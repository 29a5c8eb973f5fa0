"""The FLOP/s of a GPU, given or measured in a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Speed:
    """The speed of one GPU.

    Attributes:
        flops: FLOP/s, of the FLOPs that a plan counts.
        source: where the figure is from, for the user.
    """

    flops: float
    source: str

    def to_json(self) -> dict[str, Any]:
        return {"flops_per_second_of_a_gpu": self.flops, "source": self.source}
