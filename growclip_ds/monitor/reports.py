"""The data that training reports to the monitor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """Where a phase stands after an iteration.

    Attributes:
        iteration: iterations done.
        iterations: iterations of the whole phase.
        loss: contrastive loss of the iteration's global batch.
        learning_rate: learning rate of the iteration.
        logit_scale: what similarities were multiplied by.
        gradient_norm: gradient norm before clipping.
        skipped: iterations since the last report without an update.
        loss_scale: fp16's loss scale; None if it is not dynamic.
        samples_per_second: over all ranks, since the last report.
        data_wait_share: share of the time since the last report that the rank that waited most waited for data, 0 to 1.
        broken_samples: broken samples of the phase so far, over all ranks, by cause.
    """

    iteration: int
    iterations: int
    loss: float
    learning_rate: float
    logit_scale: float
    gradient_norm: float
    skipped: int
    loss_scale: float | None
    samples_per_second: float
    data_wait_share: float
    broken_samples: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointCost:
    """What a checkpoint in the middle of a phase took.

    Attributes:
        iteration: the iteration of the phase after which it was taken.
        waited: seconds that training stood still for it.
        written: seconds that rank 0 wrote its part, beside the training or not.
        share: of the phase's time so far, what training stood still for checkpoints, 0 to 1.
    """

    iteration: int
    waited: float
    written: float
    share: float
