"""The contents of a checkpoint and the state of a run, read from disk as plain values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from growclip_ds.architecture import Architecture, ModelSizes, Shape
from growclip_ds.checkpoint.checkpoint import Checkpoint
from growclip_ds.checkpoint.exported import ExportedModel, is_exported
from growclip_ds.checkpoint.writing import INDEX
from growclip_ds.config.config import load_config
from growclip_ds.errors import InputError
from growclip_ds.evaluation.subject import is_hugging_face, nothing_there
from growclip_ds.growth.phases import Phase, phase_epochs
from growclip_ds.model.spec import ModelSpec
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
class Model:
    """A model, as described next to its weights.

    Attributes:
        kind: `growclip` or `clip`.
        architecture: the model's architecture.
        sizes: sizes of its input and embedding space.
        widths: channels of its image and text encoders.
        parts: number of parameters of each part of the model, without the temperature.
    """

    kind: str
    architecture: Architecture
    sizes: ModelSizes
    widths: tuple[int, int]
    parts: dict[str, int]

    @classmethod
    def of(cls, spec: ModelSpec) -> Model:
        architecture, shapes = spec.architecture, dict(spec.shapes)
        widths = (architecture.image_width, architecture.text_width)
        if spec.kind == "clip":  # heads of other CLIPs need not have 64 channels
            widths = (shapes["visual_projection.weight"][1], shapes["text_projection.weight"][1])
        return cls(spec.kind, architecture, spec.sizes, widths, parts(shapes))

    @property
    def parameters(self) -> int:
        return sum(self.parts.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "architecture": asdict(self.architecture),
            "sizes": asdict(self.sizes),
            "parameters": self.parameters,
            "parts": self.parts,
        }


@dataclass(frozen=True)
class Inspected:
    """A checkpoint, or a model in Hugging Face format.

    Attributes:
        folder: its folder.
        model: the model whose weights it holds.
        growth_step, phase: the growth step and phase that wrote it; None if it does not say.
        iterations: iterations of the phase that were done; None if no phase wrote it.
        tensors: number of tensors, optimizer moments included.
        bytes: size of the tensor files.
        has_checksums: whether the format has checksums.
        verified: whether every tensor was read and, where there are checksums, compared with its own.
    """

    folder: Path
    model: Model
    growth_step: int | None
    phase: str | None
    iterations: int | None
    tensors: int
    bytes: int
    has_checksums: bool
    verified: bool

    def to_json(self) -> dict[str, Any]:
        values = {"folder": str(self.folder), "model": self.model.to_json(), "growth_step": self.growth_step}
        values |= {"phase": self.phase, "iterations": self.iterations, "tensors": self.tensors}
        return values | {"bytes": self.bytes, "has_checksums": self.has_checksums, "verified": self.verified}


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


def inspect(path: Path, verify: bool = False) -> Inspected | InspectedRun:
    """Inspects a folder.

    Args:
        path: the folder of a checkpoint, a phase of a run, a run, or a model in Hugging Face format.
        verify: whether to read every tensor and compare its checksum.

    Raises:
        InputError: the folder is none of these, or it is damaged.
    """
    for folder in (path, path / "weights"):
        if (folder / INDEX).exists():
            return inspect_checkpoint(folder, verify)
    run = RunFolder(path)
    if run.config_file.exists():
        return inspect_run(run, verify)
    if is_exported(path):
        return _inspect_exported(path, verify)
    if is_hugging_face(path):
        return _inspect_clip(path, verify)
    raise InputError(f"{path} {nothing_there(path)}")


def inspect_checkpoint(folder: Path, verify: bool = False) -> Inspected:
    """Inspects a checkpoint. Raises what `Checkpoint` does."""
    checkpoint = Checkpoint(folder)
    spec = checkpoint.spec
    if verify:
        checkpoint.verify()
    description = checkpoint.description
    return Inspected(
        folder=folder,
        model=Model.of(spec),
        growth_step=description.get("growth_step"),
        phase=description.get("phase"),
        iterations=_iterations(checkpoint),
        tensors=len(checkpoint.names),
        bytes=_bytes(folder),
        has_checksums=True,
        verified=verify,
    )


def _inspect_exported(folder: Path, verify: bool) -> Inspected:
    model = ExportedModel(folder)
    for name in model.names if verify else ():
        model.read(name)
    step = model.description.get("growth_step")
    return _hugging_face(folder, model.spec, step, verify)


def _inspect_clip(folder: Path, verify: bool) -> Inspected:
    from growclip_ds.baselines.clip_checkpoint import load_clip, outline_clip  # `transformers` is slow to import
    from growclip_ds.baselines.spec import CLIPSpec

    return _hugging_face(folder, CLIPSpec((load_clip if verify else outline_clip)(folder).config), None, verify)


def _hugging_face(folder: Path, spec: ModelSpec, step: int | None, verify: bool) -> Inspected:
    return Inspected(folder, Model.of(spec), step, None, None, len(spec.shapes), _bytes(folder), False, verify)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix == ".safetensors")


def inspect_run(run: RunFolder, verify: bool = False) -> InspectedRun:
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


def parts(shapes: dict[str, Shape]) -> dict[str, int]:
    """Counts parameters by part of a model, in its order, without the temperature.

    The layers of a stack are one part; other parts go by the beginning of their names.
    """
    counts: dict[str, int] = {}
    for name, shape in shapes.items():
        if name != "logit_scale":
            part = _part(name)
            counts[part] = counts.get(part, 0) + math.prod(shape)
    return counts


def _part(name: str) -> str:
    pieces = name.split(".")
    for place, piece in enumerate(pieces):
        if piece.isdecimal():  # a layer of this stack
            stack = pieces[:place]
            return ".".join(stack[:2] if stack[1:2] == ["stem"] else stack)
    return ".".join(pieces[: 1 if len(pieces) <= 2 or pieces[0].endswith("head") else 2])


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
    done = _iterations(checkpoint)
    resume = checkpoint.description.get("resume")
    total = done if resume is None else resume.get("iterations")
    return PhaseState(step, phase, state, done, total, None if record is None else record.seconds)


def _iterations(checkpoint: Checkpoint) -> int | None:
    """Iterations that the phase of a checkpoint had done; None for weights that no phase wrote."""
    if "resume" in checkpoint.description:
        return checkpoint.description["resume"]["iteration"]
    record = record_so_far(checkpoint)
    return None if record is None else record.iterations
