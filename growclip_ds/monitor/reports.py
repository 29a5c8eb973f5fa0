"""What the monitor is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """Where a phase stands after an iteration.

    Attributes:
        iteration: iterations done.
        iterations: of the whole phase.
        loss: contrastive loss of the iteration's global batch.
        learning_rate: of the iteration.
        logit_scale: what similarities were multiplied by.
        gradient_norm: before clipping.
        skipped: iterations since the last report without an update, gradients not being finite.
        samples_per_second: over all ranks, since the last report.
        data_wait_share: share of the time since the last report that rank 0 waited for data, 0 to 1.
    """

    iteration: int
    iterations: int
    loss: float
    learning_rate: float
    logit_scale: float
    gradient_norm: float
    skipped: int
    samples_per_second: float
    data_wait_share: float


class Result(Protocol):
    """An evaluation of the model on one set."""

    @property
    def dataset(self) -> str: ...

    @property
    def accuracy(self) -> float:
        """In percent."""
