"""A model's provenance: the growth steps that led to it, their data, and its evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from growclip_ds.architecture import Architecture
from growclip_ds.checkpoint.checkpoint import Checkpoint
from growclip_ds.checkpoint.exported import ExportedModel, is_exported
from growclip_ds.data.subsets import read_subsets
from growclip_ds.errors import InputError
from growclip_ds.evaluation.stored import results_beside
from growclip_ds.evaluation.subject import Subject
from growclip_ds.growth.phases import Phase
from growclip_ds.reporting.runs import read_runs
from growclip_ds.results import Result
from growclip_ds.run.records import record_so_far


@dataclass(frozen=True)
class GrowthStep:
    """A growth step in the model's history.

    Attributes:
        step: number of the step, from 1.
        architecture: the architecture that the model grew to.
        parameters: number of its parameters, without the temperature.
        samples: number of image-text pairs that had arrived.
    """

    step: int
    architecture: Architecture
    parameters: int
    samples: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Provenance:
    """What is known of a model's training.

    Attributes:
        steps: the growth steps, the last of which trained the model; empty if it belongs to no run.
        subsets: name and number of usable pairs of each data subset that had arrived.
        results: evaluation results, one per set: from the run, in its training precision, or from a later evaluation
            in fp32.
    """

    steps: Sequence[GrowthStep] = ()
    subsets: Sequence[tuple[str, int]] = ()
    results: Sequence[Result] = ()


def read_provenance(subject: Subject) -> Provenance:
    """Collects a model's provenance from its run or export, and from the evaluation results beside it.

    Raises:
        InputError: some of these are damaged, or the weights are a supernet's and not a growth step's model's.
    """
    results: dict[str, Result] = {}
    steps: list[GrowthStep] = []
    subsets: list[tuple[str, int]] = []
    if is_exported(subject.folder):
        growth = ExportedModel(subject.folder).growth
        steps = [GrowthStep(**{**step, "architecture": Architecture(**step["architecture"])}) for step in growth]
    elif subject.run is not None and subject.growth_step is not None:
        checkpoint = Checkpoint(subject.folder)
        description = checkpoint.description
        if description.get("phase", Phase.TRAIN) != Phase.TRAIN:
            trained = subject.run.weights(subject.growth_step, Phase.TRAIN).parent
            raise InputError(
                f"{subject.folder} holds the supernet of the {description['phase']} phase, not the model of a growth "
                f"step; give the run, or {trained}"
            )
        (run,) = read_runs([subject.run.path])
        steps = [
            GrowthStep(number, record.architecture, record.parameters, record.samples)
            for number, record in run.steps.items()
            if number <= subject.growth_step
        ]
        if subject.growth_step in run.steps:
            results.update(run.steps[subject.growth_step].results)
        elif (record := record_so_far(checkpoint)) is not None:  # trained, but not evaluated yet
            steps.append(GrowthStep(record.step, record.architecture, record.parameters, record.samples))
        if subject.run.data_file.exists():
            arrived = read_subsets(subject.run.data_file)[: subject.growth_step]
            subsets = [(subset.name, subset.samples or 0) for subset in arrived]
    results |= results_beside(subject.folder, subject.digest)
    return Provenance(steps, subsets, list(results.values()))
