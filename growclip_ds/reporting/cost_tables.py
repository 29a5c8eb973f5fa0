"""Cost tables: in the form of the paper's Table 7, and the same by phase."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from growclip_ds.costs.flops import FORWARD_FLOPS, loss_flops, training_flops
from growclip_ds.reporting.comparison import Comparison
from growclip_ds.reporting.runs import ReportedRun
from growclip_ds.reporting.table import (
    NOT_RECORDED,
    Column,
    Spread,
    Table,
    count_column,
    number_column,
    scientific_column,
    text_column,
)
from growclip_ds.run.records import PhaseRecord

FLOPS = (
    "FLOPs: of forward and backward passes over the pairs seen and of the loss, from the models' sizes, a "
    "multiplication and an addition being two; where subnets are sampled, the mean of the candidates. Padding of "
    "captions is not counted, though the fixed CLIP computes it, nor are evaluations. Of a CLIP that started from a "
    "checkpoint they are not known, as its sizes are its own."
)
HOURS = (
    "Device hours: hours by the clock, start and evaluation included, times ranks. Compare them on like devices only."
)


def phase_flops(run: ReportedRun, record: PhaseRecord) -> float | None:
    """Floating-point operations of a phase's training; None where they are not known."""
    training = record.training
    if training is None or (record.kind == "clip" and run.config.baselines.start is not None):
        return None
    if not training.pairs_seen:
        return 0.0
    trained = [record.architecture]
    if record.samples_subnets:
        trained = [candidate.architecture for candidate in record.candidates]
    if not trained:
        return None
    forward = FORWARD_FLOPS[record.kind]
    tokens = training.text_tokens_seen / training.pairs_seen
    passes = training_flops(fmean(forward(architecture, run.sizes, tokens) for architecture in trained))
    batch = run.config.training.global_batch_size
    return training.pairs_seen * (passes + loss_flops(batch, run.sizes.embed_dim) / batch)


def device_hours(record: PhaseRecord) -> float | None:
    """None where a growth step came with the model."""
    return None if record.training is None else record.device_seconds / 3600


def ran_on(records: Iterable[PhaseRecord]) -> str | None:
    """`2 × CPU, torch kernels`; several, if it was not the same for all."""
    trainings = (record.training for record in records)
    places = [f"{one.ranks} × {one.device}, {one.kernels} kernels" for one in trainings if one is not None]
    return "; ".join(dict.fromkeys(places)) or None


def costs(comparison: Comparison) -> Table:
    """Table 7: what every method took for every growth step, and what that came to."""
    columns = [
        text_column("method"),
        count_column("step"),
        number_column("parameters (M)", 2),
        number_column("accuracy", 1),
        *_cost_columns(),
    ]
    rows: list[list[Any]] = []
    for group in comparison.groups:
        for step in comparison.steps:
            runs = [run for run in group.runs if step in run.steps]
            if runs:
                figures = [comparison.parameters(group, step), comparison.accuracy(group, step)]
                rows.append([group.label, step, *figures, *_costs([(run, run.of_step(step)) for run in runs])])
    notes = [
        f"Accuracy: {comparison.accuracy_title} (%). The other figures are of all phases of the step; epochs are the "
        "pairs seen by its samples. How FLOPs and device hours are counted is said below, under the costs by phase.",
        *comparison.spread_notes,
    ]
    return Table("costs", "Cost of growth steps (Table 7)", columns, rows, notes)


def _cost_columns() -> list[Column]:
    return [
        number_column("epochs", 1, NOT_RECORDED),
        number_column("pairs seen", 0, NOT_RECORDED),
        scientific_column("FLOPs", NOT_RECORDED),
        number_column("hours", 3),
        number_column("device hours", 3, NOT_RECORDED),
        text_column("ran on", NOT_RECORDED),
    ]


def _costs(parts: Sequence[tuple[ReportedRun, Sequence[PhaseRecord]]]) -> list[Any]:
    """The columns' values of some runs, each with phases that are added up."""

    def over_runs(values: Iterable[float | None]) -> Spread | None:
        known = list(values)
        return None if None in known else Spread.of(known)

    return [
        over_runs(_sum(_epochs(record) for record in records) for _, records in parts),
        over_runs(_sum(_pairs_seen(record) for record in records) for _, records in parts),
        over_runs(_sum(phase_flops(run, record) for record in records) for run, records in parts),
        over_runs(_sum(record.seconds / 3600 for record in records) for _, records in parts),
        over_runs(_sum(device_hours(record) for record in records) for _, records in parts),
        ran_on(record for _, records in parts for record in records),
    ]


def _sum(values: Iterable[float | None]) -> float | None:
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _pairs_seen(record: PhaseRecord) -> int | None:
    return None if record.training is None else record.training.pairs_seen


def _epochs(record: PhaseRecord) -> float | None:
    return None if record.training is None else record.training.pairs_seen / record.samples


def _tokens_of_a_caption(record: PhaseRecord) -> float | None:
    training = record.training
    return training.text_tokens_seen / training.pairs_seen if training is not None and training.pairs_seen else None


def costs_of_phases(comparison: Comparison) -> Table:
    """A row for every finished phase of every run, those of unfinished growth steps among them."""
    columns = [
        text_column("run"),
        count_column("step"),
        text_column("phase"),
        number_column("parameters (M)", 2),
        number_column("tokens a caption", 1, NOT_RECORDED),
        *_cost_columns(),
    ]
    rows = []
    for _, run in comparison.runs:
        for record in run.phases:
            model = [record.parameters / 1e6, _tokens_of_a_caption(record)]
            rows.append([run.name, record.step, str(record.phase), *model, *_costs([(run, [record])])])
    return Table("costs_of_phases", "Cost by phase", columns, rows, [FLOPS, HOURS])
