"""Online growth: a growth step is due once enough new data has arrived or the loss has plateaued.

The paper grows by quarters of an existing dataset, and names continuously arriving data as future work (Limitations).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from growclip_ds.config.config import Config
from growclip_ds.data.remote import is_remote
from growclip_ds.data.subsets import Subset, count_subsets
from growclip_ds.growth.phases import Phase
from growclip_ds.run.finished import steps_of_start
from growclip_ds.run.folder import RunFolder
from growclip_ds.run.records import data_subsets

_FEWEST_POINTS = 8  # points of a curve below which it is not judged


@dataclass(frozen=True)
class GrowthRule:
    """When a growth step whose data subset is listed is due: by growth of the data, or by a plateau of the loss.

    Attributes:
        growth: smallest N^t / N^{t-1} (samples of the step over samples of the previous step) at which it is due.
        plateau: largest relative fall of the loss, from the third to the last quarter of the previous step's training,
            at which it is due whatever the growth; None to ignore the loss.
    """

    growth: float
    plateau: float | None


@dataclass(frozen=True)
class Decision:
    """Whether a run's next growth step is due.

    Attributes:
        step: the next growth step; None if all steps that the configuration allows are finished.
        is_due: whether to start the step now.
        reason: why, or why not, in words.
    """

    step: int | None
    is_due: bool
    reason: str


def decide(config: Config, folder: RunFolder, rule: GrowthRule) -> Decision:
    """Decides whether a run's next growth step is due.

    Raises:
        InputError: a data subset or the run's folder cannot be used.
    """
    given = steps_of_start(config, folder.path)
    step = next(step for step in itertools.count(given + 1) if not folder.is_finished(step, Phase.TRAIN))
    if config.growth.steps is not None and step > config.growth.steps:
        return Decision(None, False, f"all {config.growth.steps} growth steps are finished (growth.steps)")
    listed = len(config.data.subsets)
    if step > listed:
        return Decision(step, False, f"waits for data: the list has {listed} subsets")
    if step == 1:
        return Decision(step, True, "its data is there")
    recorded, subsets = data_subsets(config, folder.data_file)
    samples = [_samples(subset) for subset in subsets[:step]]
    now, before = sum(samples), sum(samples[:-1])
    arrived = f"{now:,} samples instead of {before:,}, {now / before:.2f} times as many"
    if now / before >= rule.growth:
        return Decision(step, True, arrived)
    waits = f"waits for more data: {arrived}, not {rule.growth:g} times"
    remedy = _remedy(subsets, step, is_used=step <= sum(subset.samples is not None for subset in recorded))
    if rule.plateau is None:
        return Decision(step, False, f"{waits}; {remedy}")
    fall = fall_of_loss(training_losses(folder, step - 1))
    if fall is None:
        return Decision(step, False, f"{waits}; the loss has too few points to judge; {remedy}")
    learns = f"the loss fell by {fall:.1%} at the end of step {step - 1}"
    if fall <= rule.plateau:
        return Decision(step, True, f"{learns}, no more than {rule.plateau:.1%}; {arrived}")
    return Decision(step, False, f"{waits}; {learns}; {remedy}")


def _remedy(subsets: Sequence[Subset], step: int, is_used: bool) -> str:
    """How the user can make a growth step with too little data due; subsets listed after its own do not count."""
    name = subsets[step - 1].name
    if is_used:
        return f"subset '{name}' is in use and cannot be extended: lower --growth, or run slurm/grow_run.sh"
    later = f", as '{subsets[step].name}' is for step {step + 1}" if step < len(subsets) else ""
    return f"put it into subset '{name}' (growclip data add --extend){later}"


def _samples(subset: Subset) -> int:
    if subset.samples:
        return subset.samples
    # Local shards have an index, which is cheap to read and notices changes; remote ones are counted once.
    return _streamed_samples(subset) if is_remote(subset.shards) else _counted(subset)


def _counted(subset: Subset) -> int:
    return count_subsets([subset])[0].samples or 0


_streamed_samples = functools.cache(_counted)  # counting may fetch all shards, and a watch asks often


def training_losses(folder: RunFolder, step: int) -> list[float]:
    """The logged losses of the training phase of a growth step, in order; empty if there are none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not (folder.tensorboard / "training").exists():  # the step came with model.start, or the folder was not copied
        return []
    record = folder.record(step, Phase.TRAIN)
    first = record.first_iteration
    events = EventAccumulator(str(folder.tensorboard / "training"), size_guidance={"scalars": 0}).Reload()
    if "train/loss" not in events.Tags()["scalars"]:
        return []
    points = events.Scalars("train/loss")
    return [point.value for point in points if first < point.step <= first + record.iterations]


def fall_of_loss(losses: Sequence[float]) -> float | None:
    """Relative fall of the mean loss from the third to the last quarter; None if there are too few points.

    Losses that are not finite, of iterations without an update, do not count.
    """
    losses = [loss for loss in losses if math.isfinite(loss)]
    quarter = len(losses) // 4
    if len(losses) < _FEWEST_POINTS:
        return None
    third, last = losses[-2 * quarter : -quarter], losses[-quarter:]
    return 1 - sum(last) / sum(third)
