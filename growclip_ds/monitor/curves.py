"""TensorBoard event files of a run: `training` over the iterations of all phases on one axis, `growth` by growth step.

A phase that starts over after an interruption purges what it had written before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter


class Curves:
    """The event files of a run, opened when its first phase starts.

    Args:
        folder: the run's TensorBoard folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._training: SummaryWriter | None = None
        self._growth: SummaryWriter | None = None

    def start_phase(self, step: int, first_iteration: int, is_new_step: bool) -> None:
        """Opens the event files for a phase, unless they are open.

        What an interrupted run wrote beyond this point is purged; what earlier phases of the growth step wrote stays.

        Args:
            step: the growth step.
            first_iteration: iterations of the run that are done.
            is_new_step: whether the growth step has only just begun.
        """
        if self._training is None:
            self._training = SummaryWriter(self.folder / "training", purge_step=first_iteration + 1)
            self._growth = SummaryWriter(self.folder / "growth", purge_step=step if is_new_step else None)

    def training(
        self,
        iteration: int,
        scalars: Mapping[str, float] | None = None,
        texts: Mapping[str, str] | None = None,
        figures: Mapping[str, Figure] | None = None,
    ) -> None:
        """Adds to the curves over iterations, which are counted from 1 over the whole run."""
        _add(self._training, iteration, scalars, texts, figures)

    def growth(
        self,
        step: int,
        scalars: Mapping[str, float] | None = None,
        texts: Mapping[str, str] | None = None,
        figures: Mapping[str, Figure] | None = None,
    ) -> None:
        """Adds to the curves over growth steps."""
        _add(self._growth, step, scalars, texts, figures)

    def flush(self) -> None:
        for writer in (self._training, self._growth):
            if writer is not None:
                writer.flush()

    def close(self) -> None:
        for writer in (self._training, self._growth):
            if writer is not None:
                writer.close()
        self._training = self._growth = None


def _add(
    writer: SummaryWriter | None,
    place: int,
    scalars: Mapping[str, float] | None,
    texts: Mapping[str, str] | None,
    figures: Mapping[str, Figure] | None,
) -> None:
    assert writer is not None, "no phase was started"
    for tag, value in (scalars or {}).items():
        writer.add_scalar(tag, value, place)
    for tag, text in (texts or {}).items():
        writer.add_text(tag, text, place)
    for tag, figure in (figures or {}).items():
        writer.add_figure(tag, figure, place)
