"""Results of the growth steps of a run, read from its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from growclip_ds.architecture import Architecture
from growclip_ds.growth.phases import Phase
from growclip_ds.growth.selection import Candidate
from growclip_ds.results import averaged
from growclip_ds.run.folder import RunFolder
from growclip_ds.run.records import PhaseRecord


@dataclass(frozen=True)
class StepSummary:
    """A finished growth step.

    Attributes:
        step: the number of the growth step, from 1.
        samples: number of samples in all subsets available at the step.
        architecture: the architecture that it trained.
        parameters: number of parameters, without the temperature.
        seconds: duration of its phases.
        before: zero-shot accuracy of the previous step's model in percent, by set; empty for the first step.
        after: zero-shot accuracy of this step's model in percent, by set.
        averaged: the sets over which accuracies are averaged.
        candidates: the candidates compared, best first; empty if the step selected nothing.
        selection_set: the set on which the candidates were compared; None if the step selected nothing.
    """

    step: int
    samples: int
    architecture: Architecture
    parameters: int
    seconds: float
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    averaged: Sequence[str] = ()
    candidates: Sequence[Candidate] = ()
    selection_set: str | None = None


def read_summaries(folder: RunFolder) -> list[StepSummary]:
    """Reads the finished growth steps of a run. Not collective.

    Raises:
        InputError: a phase.json is damaged.
    """
    summaries: list[StepSummary] = []
    phases: list[PhaseRecord] = []
    for record in folder.records():
        phases.append(record)
        if record.phase is Phase.TRAIN:
            summaries.append(_summary(phases, summaries[-1].after if summaries else {}))
            phases = []
    return summaries


def _summary(phases: Sequence[PhaseRecord], before: Mapping[str, float]) -> StepSummary:
    """Summarises the phases of a growth step, the last of which trained its model."""
    trained = phases[-1]
    selection = next((record for record in phases if record.candidates), None)
    return StepSummary(
        step=trained.step,
        samples=trained.samples,
        architecture=trained.architecture,
        parameters=trained.parameters,
        seconds=sum(record.seconds for record in phases),
        before=before,
        after={result.dataset: result.accuracy for result in trained.evaluation},
        averaged=[result.dataset for result in averaged(trained.evaluation)],
        candidates=() if selection is None else selection.candidates,
        selection_set=None if selection is None else selection.selection_set,
    )
