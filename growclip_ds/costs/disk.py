"""Disk usage of a run: the weights of its phases, and the checkpoints of the running phase. No torch.

Both are in fp32 in any precision of training, and depend neither on ranks nor on the ZeRO stage. Curves, records and
data indexes are small in comparison and are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.costs.activations import FP32
from growclip_ds.costs.memory import OPTIMIZER


@dataclass(frozen=True)
class Disk:
    """Disk space that phases take, in bytes.

    Attributes:
        weights: final weights of all phases.
        checkpoint: one checkpoint of the largest model.
        checkpoints: maximum number of checkpoints at a time.
    """

    weights: int
    checkpoint: int
    checkpoints: int

    @property
    def peak(self) -> int:
        """Upper bound in bytes, as if the largest model came last."""
        return self.weights + self.checkpoints * self.checkpoint

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "peak": self.peak}


def disk(trained: Iterable[Architecture], sizes: ModelSizes, keep_last: int) -> Disk:
    """Counts the disk space that phases take.

    Args:
        trained: the architecture that each phase trains.
        sizes: sizes of the models' input and embedding space.
        keep_last: checkpoints that a phase keeps; the next one is complete before the oldest is removed.
    """
    tensors = [sizes.parameters_of(architecture) + 1 for architecture in trained]  # and the temperature
    return Disk(FP32 * sum(tensors), OPTIMIZER * max(tensors, default=0), keep_last + 1)
