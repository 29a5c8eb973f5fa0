"""What training reports to the monitor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """The progress of a phase after an iteration.

    Attributes:
        iteration: iterations done.
        iterations: iterations of the whole phase.
        loss: contrastive loss of the iteration's global batch; if that is incomplete, of the last full one, as fewer
            negatives give a lower loss.
        learning_rate: learning rate of the iteration.
        logit_scale: factor by which similarities were multiplied.
        gradient_norm: gradient norm before clipping.
        skipped: iterations without an update since the last report.
        loss_scale: fp16's loss scale; None if it is not dynamic.
        samples: samples trained on since the last report, over all ranks.
        seconds: training time since the last report, without evaluations.
        data_wait_share: fraction of the time since the last report spent waiting for data, 0 to 1; maximum over ranks.
        broken_samples: broken samples in the phase so far, over all ranks, by cause.
    """

    iteration: int
    iterations: int
    loss: float
    learning_rate: float
    logit_scale: float
    gradient_norm: float
    skipped: int
    loss_scale: float | None
    samples: int
    seconds: float
    data_wait_share: float
    broken_samples: Mapping[str, int] = field(default_factory=dict)

    @property
    def samples_per_second(self) -> float:
        """Throughput over all ranks since the last report."""
        return self.samples / self.seconds


@dataclass(frozen=True)
class CheckpointCost:
    """The cost of a checkpoint within a phase.

    Attributes:
        iteration: the iteration of the phase after which it was taken.
        waited: seconds for which training was blocked.
        written: seconds that rank 0 took to write its part, in the background or not.
        share: fraction of the phase's time so far for which checkpoints blocked training, 0 to 1.
    """

    iteration: int
    waited: float
    written: float
    share: float
