"""Reads the records of finished phases from run folders, including those of unfinished runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from growclip_ds.architecture import ModelSizes
from growclip_ds.checkpoint.checkpoint import Checkpoint
from growclip_ds.config.config import Config, load_config
from growclip_ds.errors import InputError
from growclip_ds.evaluation.stored import folder_beside, results_beside
from growclip_ds.evaluation.subject import digest_of_weights
from growclip_ds.growth.phases import Phase
from growclip_ds.results import Result
from growclip_ds.run.folder import existing_run
from growclip_ds.run.records import PhaseRecord

Results = Mapping[str, Result]  # by evaluation set


@dataclass(frozen=True)
class ReportedRun:
    """A run, finished or not.

    Attributes:
        name: the name of its folder, with as much of the path as distinguishes it from the other runs.
        path: the run's folder.
        config: the run's configuration.
        phases: the finished phases, in order; the evaluation of a trained model includes later ones of its weights.
    """

    name: str
    path: Path
    config: Config
    phases: tuple[PhaseRecord, ...]

    @cached_property
    def steps(self) -> dict[int, PhaseRecord]:
        """The finished growth steps: the record of the phase that trained the model, by growth step."""
        return {record.step: record for record in self.phases if record.phase is Phase.TRAIN}

    @property
    def planned_steps(self) -> int:
        return max(self.config.num_growth_steps, *self.steps, 0)

    @property
    def is_finished(self) -> bool:
        return len(self.steps) == self.planned_steps

    @property
    def sizes(self) -> ModelSizes:
        """Sizes of the models' input and embedding space; the vocabulary, which FLOPs do not depend on, may differ."""
        vocab_size = self.config.data.tokenizer.vocab_size
        return self.config.model.sizes(ModelSizes().vocab_size if vocab_size is None else vocab_size)

    def of_step(self, step: int) -> list[PhaseRecord]:
        """The finished phases of a growth step."""
        return [record for record in self.phases if record.step == step]

    def progress(self) -> str:
        """The progress of the run: `2 of 3 growth steps`, `1 of 3 growth steps and finetune of step 2`."""
        done = f"{len(self.steps)} of {self.planned_steps} growth steps"
        begun = [str(record.phase) for record in self.phases if record.step not in self.steps]
        return f"{done} and {', '.join(begun)} of step {self.phases[-1].step}" if begun else done


def read_runs(paths: Iterable[Path]) -> list[ReportedRun]:
    """Reads the folders of runs.

    Raises:
        InputError: a folder is not a run, is given twice, or holds a damaged file.
    """
    paths = list(paths)
    resolved = [path.resolve() for path in paths]
    for place, path in enumerate(resolved):
        if path in resolved[:place]:
            raise InputError(f"the run {paths[place]} is given twice; name each run once")
    return [_read_run(path, name) for path, name in zip(paths, _names(resolved), strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    """The last component of each path, or as many of them as distinguish it from the others."""

    def end(path: Path, length: int) -> tuple[str, ...]:
        return path.parts[-length:]

    names = []
    for path in paths:
        length = 1
        while any(end(other, length) == end(path, length) for other in paths if other != path):
            length += 1
        names.append(os.fsencode("/".join(end(path, length))).decode("utf-8", "replace"))
    return names


def _read_run(path: Path, name: str) -> ReportedRun:
    folder = existing_run(path)
    config = load_config(folder.config_file)
    phases: list[PhaseRecord] = []
    for record in folder.records():
        if record.phase is Phase.TRAIN:
            since = _evaluated_since(folder.weights(record.step, record.phase))
            record = replace(record, evaluation=tuple({**record.results, **since}.values()))
        phases.append(record)
    return ReportedRun(name, path, config, tuple(phases))


def _evaluated_since(weights: Path) -> Results:
    """Results of `growclip evaluate` on the weights in a folder; empty if the weights are missing or damaged, as it
    cannot be verified then that the results are theirs.
    """
    if not any(folder_beside(weights).glob("*.json")):
        return {}
    try:
        return results_beside(weights, digest_of_weights(Checkpoint(weights)))
    except InputError:
        return {}
