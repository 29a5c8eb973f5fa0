"""What a report compares: groups of runs, and the sets on which all of them were evaluated."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from growclip_ds.errors import InputError
from growclip_ds.reporting.groups import Group, group_runs, repeated_seeds
from growclip_ds.reporting.runs import ReportedRun, Result, Results
from growclip_ds.reporting.table import Spread
from growclip_ds.results import ClassificationResult, averaged


@dataclass(frozen=True)
class Comparison:
    """Runs to compare.

    Attributes:
        groups: the runs, grouped by method and settings.
        classification: names of the classification sets on which any run was evaluated.
        retrieval: names of the retrieval sets on which any run was evaluated.
        averaged: the sets over which accuracies are averaged, used in every growth step of every run.
        in_training: the subset of `averaged` that every evaluation during training used too.
        notes: what readers must know before they compare.
    """

    groups: Sequence[Group]
    classification: Sequence[str]
    retrieval: Sequence[str]
    averaged: Sequence[str]
    in_training: Sequence[str]
    notes: Sequence[str]

    @property
    def runs(self) -> Iterator[tuple[Group, ReportedRun]]:
        return ((group, run) for group in self.groups for run in group.runs)

    @property
    def steps(self) -> range:
        """The growth steps that any run has finished."""
        return range(1, max((step for _, run in self.runs for step in run.steps), default=0) + 1)

    @property
    def accuracy_title(self) -> str:
        """Describes `mean`, for the header of a column."""
        return self._title(self.averaged)

    @property
    def title_in_training(self) -> str:
        """Describes `mean_in_training`, for the label of an axis."""
        return self._title(self.in_training)

    def _title(self, averaged: Sequence[str]) -> str:
        kind = "R@1" if averaged and averaged[0] in self.retrieval else "top-1"
        return f"mean {kind} of {len(averaged)} sets" if len(averaged) != 1 else f"{kind}, {averaged[0]}"

    @property
    def accuracy_notes(self) -> list[str]:
        """Explains the accuracies of a table; empty if there are none."""
        return [f"Accuracy: {self.accuracy_title} (%)."] if self.averaged else []

    @property
    def spread_notes(self) -> list[str]:
        """Explains the values of a table, if some of them are over several runs."""
        several = any(len(group.runs) > 1 for group in self.groups)
        return ["Over several seeds: mean ± standard deviation (number of runs)."] if several else []

    def mean(self, results: Results) -> float | None:
        """Mean accuracy over `averaged` in percent; None if one of the sets was not evaluated."""
        return _mean(results, self.averaged)

    def mean_in_training(self, results: Results) -> float | None:
        """Mean accuracy over `in_training` in percent; None if one of the sets was not evaluated."""
        return _mean(results, self.in_training)

    def accuracy(self, group: Group, step: int) -> Spread | None:
        """Mean accuracy of a group after a growth step, over the runs that have finished it."""
        return Spread.of(self.mean(run.steps[step].results) for run in group.runs if step in run.steps)

    def parameters(self, group: Group, step: int) -> Spread | None:
        """Parameters of a group's models after a growth step, in millions, over the runs that have finished it."""
        return Spread.of(run.steps[step].parameters / 1e6 for run in group.runs if step in run.steps)


def _mean(results: Results, averaged: Sequence[str]) -> float | None:
    if not averaged or any(name not in results for name in averaged):
        return None
    return statistics.fmean(results[name].accuracy for name in averaged)


def compare(runs: Sequence[ReportedRun]) -> Comparison:
    """Groups the runs, and finds the evaluation sets that they share.

    Raises:
        InputError: the runs share no evaluation set, or use one name for different sets.
    """
    groups = group_runs(runs)
    evaluated = [(run.name, record.results) for run in runs for record in run.steps.values() if record.results]
    seen: dict[str, tuple[str, Result]] = {}
    for name, results in evaluated:
        for dataset, result in results.items():
            _check_same_set(*seen.setdefault(dataset, (name, result)), name, result)
    classification = [dataset for dataset, (_, one) in seen.items() if isinstance(one, ClassificationResult)]
    retrieval = [dataset for dataset in seen if dataset not in classification]
    common = [dataset for dataset in seen if all(dataset in results for _, results in evaluated)]
    if seen and not common:
        raise InputError(_nothing_in_common(evaluated))
    means_over = [result.dataset for result in averaged(seen[dataset][1] for dataset in common)]
    points = [point.results for run in runs for record in run.phases for point in record.curve if point.evaluation]
    in_training = [dataset for dataset in means_over if all(dataset in results for results in points)]
    notes = [
        *(f"{run.name} is not finished: {run.progress()}." for run in runs if not run.is_finished),
        *_nothing_evaluated(runs, evaluated),
        *_sets_left_out(seen, common, means_over, evaluated),
        *_other_data(runs),
        *repeated_seeds(groups),
    ]
    return Comparison(groups, classification, retrieval, means_over, in_training, notes)


def _check_same_set(first: str, one: Result, second: str, other: Result) -> None:
    if _size(one) != _size(other):
        raise InputError(
            f"the evaluation set {one.dataset!r} has {_size(one)} in {first}, but {_size(other)} in {second}: they "
            "are different sets of the same name; report these runs separately, or evaluate them on the same set"
        )


def _size(result: Result) -> str:
    if isinstance(result, ClassificationResult):
        return f"{result.samples + result.unreadable:,} images to classify"
    return f"{result.pictures + result.unreadable:,} images to retrieve"


def _nothing_in_common(evaluated: Sequence[tuple[str, Results]]) -> str:
    first: dict[frozenset[str], str] = {}
    for name, results in evaluated:
        first.setdefault(frozenset(results), f"{name} on {', '.join(results)}")
    return (
        f"the runs were evaluated on different sets, {'; '.join(first.values())}: none is common to all, so there is "
        "nothing to compare; report them separately, or evaluate them on a common set (evaluation.datasets)"
    )


def _nothing_evaluated(runs: Sequence[ReportedRun], evaluated: Sequence[tuple[str, Results]]) -> Iterator[str]:
    if not evaluated and any(run.steps for run in runs):
        yield (
            "No accuracies: no growth step was evaluated, as no sets are named in evaluation.datasets; "
            "growclip evaluate RUN --sets SETS evaluates a run's last model, and the next report contains the results."
        )


def _sets_left_out(
    seen: Iterable[str], common: Sequence[str], averaged: Sequence[str], evaluated: Sequence[tuple[str, Results]]
) -> Iterator[str]:
    for dataset in seen:
        if dataset not in common:
            lacking = dict.fromkeys(name for name, results in evaluated if dataset not in results)
            yield (
                f"The runs have different evaluation sets: {', '.join(lacking)} (some or all growth steps) was not "
                f"evaluated on {dataset}. Means are over the sets common to all: {', '.join(averaged)}."
            )


def _other_data(runs: Sequence[ReportedRun]) -> Iterator[str]:
    """Notes on growth steps that had different amounts of data in different runs."""
    first: dict[int, tuple[str, int]] = {}
    for run in runs:
        for step, record in run.steps.items():
            name, samples = first.setdefault(step, (run.name, record.samples))
            if samples != record.samples:
                yield (
                    f"Growth step {step} of {name} had {samples:,} samples, that of {run.name} {record.samples:,}: "
                    "their accuracies are for different amounts of data."
                )
                break
