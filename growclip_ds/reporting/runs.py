"""What finished phases did, read from the folders of runs, also of unfinished ones and of older versions' runs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.checkpoint.checkpoint import Checkpoint
from growclip_ds.config.config import Config, load_config
from growclip_ds.errors import InputError
from growclip_ds.evaluation.results import Result, result_from_json
from growclip_ds.evaluation.stored import folder_beside, results_beside
from growclip_ds.evaluation.subject import digest_of_weights
from growclip_ds.growth.phases import Phase
from growclip_ds.growth.selection import Candidate
from growclip_ds.run.folder import RunFolder
from growclip_ds.run.records import device_seconds

Results = Mapping[str, Result]  # by set


@dataclass(frozen=True)
class PhaseRecord:
    """What a finished phase did. What older versions did not record is None.

    Attributes:
        step: growth step, from 1.
        phase: which it was.
        samples: N^t, of all subsets that had arrived; 0 where the model came from elsewhere, which did not say.
        parameters: of the model, of a supernet all of them; without the temperature.
        iterations: of the phase.
        seconds: by the clock.
        device_seconds: of all ranks together.
        epochs: passes over the step's data that the phase made.
        results: evaluations of the model when the phase was over, and of its weights since.
        curve: evaluations in its course, with the iterations of the phase after which they were made.
        candidates: compared at its end, best first.
        selection_set: on which they were compared.
        architecture: of the model.
        fixed_clip: whether the model is a fixed CLIP, not a GrowCLIP.
        pairs_seen: over all ranks.
        text_tokens_seen: over all ranks.
        ranks, device, kernels: on what it ran.
    """

    step: int
    phase: Phase
    samples: int
    parameters: int
    iterations: int
    seconds: float
    device_seconds: float | None
    epochs: float | None
    results: Results
    curve: Sequence[tuple[int, Results]]
    candidates: Sequence[Candidate]
    selection_set: str | None
    architecture: Architecture | None
    fixed_clip: bool
    pairs_seen: int | None
    text_tokens_seen: int | None
    ranks: int | None
    device: str | None
    kernels: str | None

    @property
    def samples_subnets(self) -> bool:
        """Whether each iteration trained a subnet, and not the whole model."""
        return self.phase in (Phase.SELECTION, Phase.SEARCH)


@dataclass(frozen=True)
class Run:
    """A run, as far as it is.

    Attributes:
        name: of its folder, with as much of the path as tells it from other runs.
        path: the folder.
        config: its configuration.
        phases: that are finished, in order.
    """

    name: str
    path: Path
    config: Config
    phases: tuple[PhaseRecord, ...]

    @cached_property
    def steps(self) -> dict[int, PhaseRecord]:
        """The finished growth steps: what trained the step's model."""
        return {record.step: record for record in self.phases if record.phase is Phase.TRAIN}

    @property
    def planned_steps(self) -> int:
        return max(self.config.num_growth_steps, *self.steps, 0)

    @property
    def is_finished(self) -> bool:
        return len(self.steps) == self.planned_steps

    @property
    def sizes(self) -> ModelSizes:
        """Of the model's inputs; the vocabulary, of which no FLOPs depend, may be another."""
        vocab_size = self.config.data.tokenizer.vocab_size
        return self.config.model.sizes(ModelSizes().vocab_size if vocab_size is None else vocab_size)

    def of_step(self, step: int) -> list[PhaseRecord]:
        """The finished phases of a growth step."""
        return [record for record in self.phases if record.step == step]

    def epochs(self, record: PhaseRecord, iterations: int) -> float:
        """Passes over the step's data in so many iterations of a phase; none where it came with `model.start`."""
        if not iterations:
            return 0.0
        if record.epochs is not None:
            return record.epochs * iterations / record.iterations
        return iterations * self.config.training.global_batch_size / record.samples if record.samples else 0.0

    def progress(self) -> str:
        """How far it is: `2 of 3 growth steps`, `1 of 3 growth steps and finetune of step 2`."""
        done = f"{len(self.steps)} of {self.planned_steps} growth steps"
        begun = [str(record.phase) for record in self.phases if record.step not in self.steps]
        return f"{done} and {', '.join(begun)} of step {self.phases[-1].step}" if begun else done


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """Reads the folders of runs.

    Raises:
        InputError: a folder is no run, or is given twice; or something in it is damaged.
    """
    paths = list(paths)
    resolved = [path.resolve() for path in paths]
    for place, path in enumerate(resolved):
        if path in resolved[:place]:
            raise InputError(f"the run {paths[place]} is given twice; name each run once")
    return [_read_run(path, name) for path, name in zip(paths, _names(resolved), strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many of them as tell it from the others."""

    def end(path: Path, length: int) -> tuple[str, ...]:
        return path.parts[-length:]

    names = []
    for path in paths:
        length = 1
        while any(end(other, length) == end(path, length) for other in paths if other != path):
            length += 1
        names.append(os.fsencode("/".join(end(path, length))).decode("utf-8", "replace"))
    return names


def _read_run(path: Path, name: str) -> Run:
    folder = RunFolder(path)
    if not path.is_dir():
        raise InputError(f"there is no folder {path}; name the --output-dir of a training")
    if not folder.config_file.exists():
        raise InputError(f"{path} is no run, as it has no {folder.config_file.name}; name the --output-dir of one")
    config = load_config(folder.config_file)
    phases: list[PhaseRecord] = []
    architecture = config.model.base  # where a record does not say: of GrowCLIPs, before there were other methods
    for step, phase, record in folder.records():
        file = folder.phase(step, phase) / "phase.json"
        try:
            read = _phase_record(step, phase, record)
            if read.candidates:
                architecture = read.candidates[0].architecture
            if read.architecture is None and phase is Phase.TRAIN:
                read = _phase_record(step, phase, record, architecture)
        except _DAMAGE as error:
            raise damaged_record(file, error) from None
        if phase is Phase.TRAIN:
            read = replace(read, results={**read.results, **_evaluated_since(folder.weights(step, phase))})
        phases.append(read)
    return Run(name, path, config, tuple(phases))


def damaged_record(file: Path, error: Exception) -> InputError:
    """What to say of a phase.json that is not as phases write it."""
    what = f"no {error}" if isinstance(error, KeyError) else error
    return InputError(
        f"{file} is damaged: {what}; copy it again, or remove it and start the run again, which then evaluates the "
        "phase's weights anew"
    )


_DAMAGE = (KeyError, TypeError, ValueError, AttributeError)


def _phase_record(
    step: int, phase: Phase, record: Mapping[str, Any], architecture: Architecture | None = None
) -> PhaseRecord:
    model = record.get("model") or {}
    if model:
        architecture = Architecture(**model["architecture"])
    seconds, ranks = _number(record, "seconds"), _number_if_there(record, "ranks")
    _number_if_there(record, "device_seconds")  # that it is one
    return PhaseRecord(
        step=step,
        phase=phase,
        samples=_number(record, "samples", least=0 if "start" in record else 1),
        parameters=_number(record, "parameters"),
        iterations=_number(record, "iterations"),
        seconds=seconds,
        device_seconds=device_seconds(record),
        epochs=_number_if_there(record, "epochs"),
        results=_results(record.get("evaluation") or []),
        curve=[(_number(point, "iteration"), _results(point["evaluation"])) for point in record.get("curve") or []],
        candidates=[_candidate(candidate) for candidate in record.get("candidates") or []],
        selection_set=_text_if_there(record, "selection_set"),
        architecture=architecture,
        fixed_clip=model.get("kind") == "clip",
        pairs_seen=_number_if_there(record, "pairs_seen"),
        text_tokens_seen=_number_if_there(record, "text_tokens_seen"),
        ranks=ranks,
        device=_text_if_there(record, "device"),
        kernels=_text_if_there(record, "kernels"),
    )


def _results(stored: Sequence[Mapping[str, Any]]) -> Results:
    return {result.dataset: result for result in map(result_from_json, stored)}


def _evaluated_since(weights: Path) -> Results:
    """What `growclip evaluate` has found of the weights in a folder; nothing if they are not there, or damaged, so that
    it cannot be told whether the results are theirs.
    """
    if not any(folder_beside(weights).glob("*.json")):
        return {}
    try:
        return results_beside(weights, digest_of_weights(Checkpoint(weights)))
    except InputError:
        return {}


def _candidate(stored: dict[str, Any]) -> Candidate:
    for key in ("parameters", "accuracy"):
        _number(stored, key)
    return Candidate.from_json(stored)


def _text_if_there(record: Mapping[str, Any], key: str) -> str | None:
    value = record.get(key)
    if not isinstance(value, str | None):
        raise ValueError(f"{key} is {value!r}")
    return value


def _number_if_there(record: Mapping[str, Any], key: str) -> Any:
    return None if record.get(key) is None else _number(record, key)


def _number(record: Mapping[str, Any], key: str, least: int = 0) -> Any:
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise ValueError(f"{key} is {value!r}")
    return value
