"""What the monitor is told: the shape of it, so that whatever tells it need not be imported."""

from __future__ import annotations

from typing import Protocol

from growclip_ds.architecture import Architecture


class Progress(Protocol):
    """Where a phase stands after an iteration."""

    @property
    def iteration(self) -> int:
        """Iterations done."""

    @property
    def iterations(self) -> int:
        """Of the whole phase."""

    @property
    def loss(self) -> float:
        """Of the iteration's global batch."""

    @property
    def learning_rate(self) -> float: ...

    @property
    def logit_scale(self) -> float:
        """What similarities were multiplied by."""

    @property
    def gradient_norm(self) -> float:
        """Before clipping."""

    @property
    def skipped(self) -> bool:
        """Whether the update was left out, gradients not being finite."""

    @property
    def samples_per_second(self) -> float:
        """Over all ranks, since the last report."""

    @property
    def data_wait_share(self) -> float:
        """Share of the time since the last report that went by waiting for data, 0 to 1."""


class Candidate(Protocol):
    """A candidate of architecture selection, evaluated."""

    @property
    def architecture(self) -> Architecture: ...

    @property
    def parameters(self) -> int: ...

    @property
    def accuracy(self) -> float:
        """In percent."""

    @property
    def metric(self) -> float:
        """Eq. 7."""


class Result(Protocol):
    """An evaluation of the model on one set."""

    @property
    def dataset(self) -> str: ...

    @property
    def accuracy(self) -> float:
        """In percent."""
