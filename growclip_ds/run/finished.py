"""Which growth steps of a run are finished, for commands that start others. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from growclip_ds.checkpoint.exported_config import read_config, read_growth

if TYPE_CHECKING:
    from growclip_ds.config.config import Config


def is_step_finished(run: Path, step: int) -> bool:
    """Whether the last phase of a growth step is finished; must agree with `RunFolder.is_finished`."""
    return (run / f"step_{step}" / "train" / "phase.json").exists()


def steps_of_start(config: Config, run: Path) -> int:
    """Number of growth steps that come with `model.start`, as long as the run's folder does not have them yet.

    Raises:
        InputError: `model.start` is not an exported GrowCLIP.
    """
    if config.model.start is None or is_step_finished(run, 1):
        return 0
    start = Path(config.model.start)
    return len(read_growth(start, read_config(start))) or 1
