"""The state of a run, and what changed between the models of its growth steps, read from its folder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from growclip_ds.architecture import Architecture, Shape
from growclip_ds.checkpoint.checkpoint import Checkpoint
from growclip_ds.checkpoint.writing import INDEX
from growclip_ds.config.config import load_config
from growclip_ds.growth.phases import Phase, phase_epochs
from growclip_ds.inspection.models import Inspected, inspect_checkpoint, iterations_of
from growclip_ds.run.folder import RunFolder
from growclip_ds.run.lock import running
from growclip_ds.run.records import record_so_far


@dataclass(frozen=True)
class Growth:
    """What changed between the models of two growth steps.

    Attributes:
        dimensions: the dimensions that grew, each with its old and new value.
        parameters: number of parameters added.
        new: tensors that the old model does not have, with their shapes.
        widened: tensors that grew, with their old and new shapes.
        kept: number of tensors whose shape is unchanged.
    """

    dimensions: dict[str, tuple[int, int]]
    parameters: int
    new: dict[str, Shape]
    widened: dict[str, tuple[Shape, Shape]]
    kept: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class PhaseState:
    """A phase of a run.

    Attributes:
        step: the growth step.
        phase: the phase of that step.
        state: `finished`, `given` (its model came with `model.start`), `trained` (but not yet evaluated), `running`,
            `interrupted` (it has a checkpoint) or `not begun`.
        iterations: iterations done; None if unknown.
        total: all iterations of the phase; None if unknown.
        seconds: duration so far; None if unknown.
    """

    step: int
    phase: Phase
    state: str
    iterations: int | None = None
    total: int | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "phase": str(self.phase)}


@dataclass(frozen=True)
class InspectedRun:
    """A run.

    Attributes:
        folder: the run's folder.
        method: the run's method.
        running: the process that is training it now; None if none is known.
        phases: the phases of all growth steps, in order.
        models: the trained models by growth step, where their weights exist.
        growth: what changed since the previous growth step, by growth step, where the weights of both exist.
    """

    folder: Path
    method: str
    running: str | None
    phases: list[PhaseState]
    models: dict[int, Inspected]
    growth: dict[int, Growth]

    @property
    def newest(self) -> Inspected | None:
        """The model of the last growth step that has weights."""
        return self.models[max(self.models)] if self.models else None

    @property
    def without_weights(self) -> list[int]:
        """Finished growth steps whose weights are missing: not copied, or removed."""
        finished = [one.step for one in self.phases if one.phase is Phase.TRAIN and one.state == "finished"]
        return [step for step in finished if step not in self.models]

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "method": self.method,
            "running": self.running,
            "phases": [phase.to_json() for phase in self.phases],
            "models": {step: model.to_json() for step, model in self.models.items()},
            "growth": {step: growth.to_json() for step, growth in self.growth.items()},
        }


def inspect_run(run: RunFolder, verify: bool) -> InspectedRun:
    """Inspects a run. Raises what `Checkpoint` and `load_config` do."""
    config = load_config(run.config_file)
    phases, models, growth = [], {}, {}
    shapes: dict[int, dict[str, Shape]] = {}
    for step in range(1, config.num_growth_steps + 1):
        phases += _phase_states(run, step, list(phase_epochs(config, step)))
        weights = run.weights(step, Phase.TRAIN)
        if not (weights / INDEX).exists():
            continue
        models[step] = inspect_checkpoint(weights, verify)
        shapes[step] = dict(Checkpoint(weights).spec.shapes)
        if step - 1 in models:
            before, after = models[step - 1].model, models[step].model
            growth[step] = _growth(before.architecture, after.architecture, shapes[step - 1], shapes[step])
    process = running(run.path)
    if process is not None:
        place = next((place for place, one in enumerate(phases) if one.state not in ("finished", "given")), None)
        if place is not None:
            phases[place] = replace(phases[place], state="running")
    return InspectedRun(run.path, config.method, process, phases, models, growth)


def _growth(old: Architecture, new: Architecture, before: dict[str, Shape], after: dict[str, Shape]) -> Growth:
    grew = {name: (was, now) for (name, was), (_, now) in zip(old.items(), new.items(), strict=True) if was != now}
    counts = [sum(math.prod(shape) for shape in shapes.values()) for shapes in (before, after)]
    return Growth(
        dimensions=grew,
        parameters=counts[1] - counts[0],
        new={name: shape for name, shape in after.items() if name not in before},
        widened={name: (before[name], shape) for name, shape in after.items() if before.get(name, shape) != shape},
        kept=sum(before.get(name) == shape for name, shape in after.items()),
    )


def _phase_states(run: RunFolder, step: int, phases: Sequence[Phase]) -> list[PhaseState]:
    last = _phase_state(run, step, Phase.TRAIN)
    if last.state == "given":  # the other phases were run elsewhere
        return [last]
    return [*(_phase_state(run, step, phase) for phase in phases if phase is not Phase.TRAIN), last]


def _phase_state(run: RunFolder, step: int, phase: Phase) -> PhaseState:
    folder = run.phase(step, phase)
    if (folder / "phase.json").exists():
        record = run.record(step, phase)
        state = "finished" if record.start is None else "given"
        return PhaseState(step, phase, state, record.iterations, record.iterations, record.seconds)
    weights = run.weights(step, phase)
    if (weights / INDEX).exists():
        return _described(step, phase, "trained", weights)
    newest = max(_kept(run.checkpoints(step, phase)), default=None)
    if newest is not None:
        return _described(step, phase, "interrupted", newest[1])
    return PhaseState(step, phase, "not begun")


def _kept(folder: Path) -> Iterator[tuple[int, Path]]:
    """Complete checkpoints in a folder, each with its iteration."""
    for path in folder.glob("iteration_*"):
        number = path.name.removeprefix("iteration_")
        if number.isdecimal() and (path / INDEX).exists():
            yield int(number), path


def _described(step: int, phase: Phase, state: str, folder: Path) -> PhaseState:
    checkpoint = Checkpoint(folder)
    record = record_so_far(checkpoint)
    done = iterations_of(checkpoint)
    resume = checkpoint.description.get("resume")
    total = done if resume is None else resume.get("iterations")
    return PhaseState(step, phase, state, done, total, None if record is None else record.seconds)
