"""Typed records of a run: of a phase (in its `phase.json` and checkpoints), and of the data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from growclip_ds.architecture import Architecture
from growclip_ds.checkpoint.checkpoint import Checkpoint
from growclip_ds.config.config import Config
from growclip_ds.data.faults import Cause
from growclip_ds.data.subsets import Subset, continue_subsets, read_subsets
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import Phase
from growclip_ds.growth.selection import Candidate
from growclip_ds.results import Result, result_from_json

_DAMAGE = (KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class CurvePoint:
    """An evaluation during a phase.

    Attributes:
        iteration: number of the phase's iterations before the evaluation.
        evaluation: the results, one per set.
    """

    iteration: int
    evaluation: Sequence[Result]

    @property
    def results(self) -> dict[str, Result]:
        """The results by name of the set."""
        return {result.dataset: result for result in self.evaluation}

    def to_json(self) -> dict[str, Any]:
        return {"iteration": self.iteration, "evaluation": [result.to_json() for result in self.evaluation]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CurvePoint:
        return cls(_count(values, "iteration"), _results(values["evaluation"]))


@dataclass(frozen=True)
class Training:
    """How a phase was trained, over all its starts.

    Attributes:
        epochs: passes over the growth step's data.
        ranks: number of ranks of its last start.
        device: the device they ran on: a GPU's name, or `CPU`.
        kernels: the kernels used, `torch` or `triton`.
        pairs_seen: image-caption pairs trained on, over all ranks.
        text_tokens_seen: caption tokens trained on, over all ranks, without padding.
        dead_workers: data loading processes that died and were replaced.
        broken_samples: number of broken samples met in the data, over all ranks, by cause.
        skipped_iterations: iterations without an update.
    """

    epochs: int
    ranks: int
    device: str
    kernels: str
    pairs_seen: int = 0
    text_tokens_seen: int = 0
    dead_workers: int = 0
    broken_samples: Mapping[Cause, int] = field(default_factory=dict)
    skipped_iterations: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"broken_samples": {str(cause): count for cause, count in self.broken_samples.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Training:
        broken = values["broken_samples"]
        return cls(
            epochs=_count(values, "epochs"),
            ranks=_count(values, "ranks", least=1),
            device=_text(values, "device"),
            kernels=_text(values, "kernels"),
            pairs_seen=_count(values, "pairs_seen"),
            text_tokens_seen=_count(values, "text_tokens_seen"),
            dead_workers=_count(values, "dead_workers"),
            broken_samples={Cause(cause): _count(broken, cause) for cause in broken},
            skipped_iterations=_count(values, "skipped_iterations"),
        )


@dataclass(frozen=True)
class PhaseRecord:
    """The record of a phase of a growth step; in a checkpoint, of the phase so far.

    Attributes:
        step: growth step, from 1.
        phase: its phase.
        samples: N^t, samples of all subsets that had arrived; 0 if an exported model did not record them.
        parameters: number of parameters of the model or of the whole supernet, without the temperature.
        kind: the model's kind, `growclip`, or `clip`, which does not grow.
        architecture: the model's architecture.
        iterations: iterations of the phase; 0 until it is trained.
        first_iteration: iterations of the run before the phase.
        seconds: wall-clock time, including start-up and evaluation.
        device_seconds: wall-clock time summed over ranks, whose number may change between starts.
        training: how the phase was trained; None until it begins, and for a growth step that came with `model.start`.
        curve: evaluations during the phase, if any.
        evaluation: results of the growth step's trained model on the reported sets; empty for a supernet.
        selection_set: the set on which candidates were compared; None if nothing is selected.
        candidates: the candidates compared, best first.
        start: the exported model that the growth step came with; None if the run trained the growth step itself.
    """

    step: int
    phase: Phase
    samples: int
    parameters: int
    kind: str
    architecture: Architecture
    iterations: int = 0
    first_iteration: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0
    training: Training | None = None
    curve: Sequence[CurvePoint] = ()
    evaluation: Sequence[Result] = ()
    selection_set: str | None = None
    candidates: Sequence[Candidate] = ()
    start: str | None = None

    @property
    def results(self) -> dict[str, Result]:
        """The results of the evaluation, by name of the set."""
        return {result.dataset: result for result in self.evaluation}

    @property
    def samples_subnets(self) -> bool:
        """Whether each iteration trains a sampled subnet instead of the whole model."""
        return self.phase in (Phase.SELECTION, Phase.SEARCH)

    def epochs_after(self, iterations: int) -> float:
        """Epochs over the growth step's data in this number of iterations of the phase."""
        if self.training is None or not iterations:
            return 0.0
        return self.training.epochs * iterations / self.iterations

    def to_json(self) -> dict[str, Any]:
        """The content of phase.json, whose path says which phase of which growth step it is."""
        values: dict[str, Any] = {} if self.start is None else {"start": self.start}
        values |= {
            "samples": self.samples,
            "parameters": self.parameters,
            "model": {"kind": self.kind, "architecture": asdict(self.architecture)},
            "iterations": self.iterations,
            "first_iteration": self.first_iteration,
            "seconds": self.seconds,
            "device_seconds": self.device_seconds,
            "curve": [point.to_json() for point in self.curve],
        }
        if self.training is not None:
            values |= self.training.to_json()
        if self.phase is Phase.TRAIN:
            values["evaluation"] = [result.to_json() for result in self.evaluation]
        if self.candidates:
            values["selection_set"] = self.selection_set
            values["candidates"] = [candidate.to_json() for candidate in self.candidates]
        return values

    @classmethod
    def from_json(cls, step: int, phase: Phase, values: Mapping[str, Any]) -> PhaseRecord:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: `values` is not the result of `to_json`.
        """
        came_with_model = "start" in values
        if came_with_model:
            values = {"device_seconds": 0.0, "curve": (), **values}  # added to records later
        return cls(
            step=step,
            phase=phase,
            samples=_count(values, "samples", least=0 if came_with_model else 1),
            parameters=_count(values, "parameters"),
            architecture=Architecture(**values["model"]["architecture"]),
            kind=_text(values["model"], "kind"),
            iterations=_count(values, "iterations"),
            first_iteration=_count(values, "first_iteration"),
            seconds=_number(values, "seconds"),
            device_seconds=_number(values, "device_seconds"),
            training=None if came_with_model else Training.from_json(values),
            curve=tuple(map(CurvePoint.from_json, values["curve"])),
            evaluation=_results(values.get("evaluation", ())),
            candidates=tuple(map(_candidate, values.get("candidates", ()))),
            selection_set=_text(values, "selection_set") if "candidates" in values else None,
            start=_text(values, "start") if came_with_model else None,
        )


def read_record(file: Path, step: int, phase: Phase) -> PhaseRecord:
    """The record of a finished phase.

    Raises:
        InputError: the phase is not finished, or its phase.json is damaged.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"the {phase} phase of growth step {step} is not finished: there is no {file}") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} cannot be read ({error}); remove it, and the run evaluates the phase's weights again"
        ) from None
    try:
        return PhaseRecord.from_json(step, phase, values)
    except _DAMAGE as error:
        raise InputError(
            f"{file} is damaged: {_in_words(error)}; copy it again, or remove it and start the run again, which then "
            "evaluates the phase's weights again"
        ) from None


def described(record: PhaseRecord) -> dict[str, Any]:
    """The record of a phase as part of a checkpoint's description; read by `record_so_far`."""
    return {"growth_step": record.step, "phase": str(record.phase), "record": record.to_json()}


def record_so_far(checkpoint: Checkpoint) -> PhaseRecord | None:
    """The record of a checkpoint's phase when it was written; None for weights that were not written by a run.

    Raises:
        InputError: the checkpoint's description is damaged.
    """
    description = checkpoint.description
    if "record" not in description:
        return None
    try:
        return PhaseRecord.from_json(description["growth_step"], Phase(description["phase"]), description["record"])
    except _DAMAGE as error:
        raise InputError(
            f"{checkpoint.folder}: the record of its phase is damaged, or of another version: {_in_words(error)}; "
            "restore its weights.json, or continue with the version that wrote it"
        ) from None


def _in_words(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def _results(stored: Sequence[Mapping[str, Any]]) -> tuple[Result, ...]:
    return tuple(map(result_from_json, stored))


def _candidate(stored: dict[str, Any]) -> Candidate:
    for key in ("parameters", "accuracy"):
        _number(stored, key)
    return Candidate.from_json(stored)


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r}")
    return value


def _count(values: Mapping[str, Any], key: str, least: int = 0) -> int:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{key} is {value!r}")
    return value


def _number(values: Mapping[str, Any], key: str) -> float:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{key} is {value!r}")
    return value


def data_subsets(config: Config, data_file: Path) -> tuple[list[Subset], list[Subset]]:
    """The subsets that a run has recorded, and all of its subsets: the recorded ones, then those only configured.

    Raises:
        InputError: `data.yaml` is damaged, or the configuration changes a recorded subset.
    """
    recorded = read_subsets(data_file) if data_file.exists() else []
    return recorded, continue_subsets(recorded, [Subset(**dict(subset)) for subset in config.data.subsets])
