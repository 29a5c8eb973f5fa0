"""Cost tables, by growth step in the form of the paper's Table 7, and by phase."""

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
    "FLOPs: forward and backward passes over the pairs seen, and the loss, computed from the models' sizes; a "
    "multiply-add is two operations. Where subnets are sampled, the mean over the candidates is taken. Padding of "
    "captions is not counted, although the fixed CLIP computes it, nor are evaluations, nor forward passes repeated to "
    "save memory (activation checkpointing, several micro-batches). The FLOPs of a CLIP that started from a checkpoint "
    "are not known, as the checkpoint defines its sizes."
)
HOURS = (
    "Device hours: wall-clock hours, start-up and evaluation included, times ranks. Compare them only between devices "
    "of the same kind."
)


def phase_flops(run: ReportedRun, record: PhaseRecord) -> float | None:
    """FLOPs of the training of a phase; None where they are not known."""
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


def hours(record: PhaseRecord) -> float | None:
    """Wall-clock hours of a phase; None if no training is recorded, as with `model.start`."""
    return None if record.training is None else record.seconds / 3600


def device_hours(record: PhaseRecord) -> float | None:
    """Wall-clock hours of a phase times its ranks; None as for `hours`."""
    return None if record.training is None else record.device_seconds / 3600


def ran_on(records: Iterable[PhaseRecord]) -> str | None:
    """Ranks, device and kernels of phases: `2 × CPU, torch kernels`; joined by semicolons if they differ."""
    trainings = (record.training for record in records)
    places = [f"{one.ranks} × {one.device}, {one.kernels} kernels" for one in trainings if one is not None]
    return "; ".join(dict.fromkeys(places)) or None


def costs(comparison: Comparison) -> Table:
    """Table 7: cost and result of every growth step of every method."""
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
        *comparison.accuracy_notes,
        "Costs are summed over all phases of the step; epochs are pairs seen divided by its samples. The notes on "
        "costs by phase, below, say how FLOPs and device hours are counted.",
        *comparison.spread_notes,
    ]
    return Table("costs", "Cost of growth steps (Table 7)", columns, rows, notes)


def _cost_columns() -> list[Column]:
    return [
        number_column("epochs", 1, NOT_RECORDED),
        number_column("pairs seen", 0, NOT_RECORDED),
        scientific_column("FLOPs", NOT_RECORDED),
        number_column("hours", 3, NOT_RECORDED),
        number_column("device hours", 3, NOT_RECORDED),
        text_column("ran on", NOT_RECORDED),
    ]


def _costs(parts: Sequence[tuple[ReportedRun, Sequence[PhaseRecord]]]) -> list[Any]:
    """The values of `_cost_columns`: each run with the phases over which its costs are summed."""

    def over_runs(values: Iterable[float | None]) -> Spread | None:
        known = list(values)
        return None if None in known else Spread.of(known)

    return [
        over_runs(_sum(_epochs(record) for record in records) for _, records in parts),
        over_runs(_sum(_pairs_seen(record) for record in records) for _, records in parts),
        over_runs(_sum(phase_flops(run, record) for record in records) for run, records in parts),
        over_runs(_sum(hours(record) for record in records) for _, records in parts),
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


def _tokens_per_caption(record: PhaseRecord) -> float | None:
    training = record.training
    return training.text_tokens_seen / training.pairs_seen if training is not None and training.pairs_seen else None


def costs_of_phases(comparison: Comparison) -> Table:
    """One row per finished phase of every run, including those of unfinished growth steps."""
    columns = [
        text_column("run"),
        count_column("step"),
        text_column("phase"),
        number_column("parameters (M)", 2),
        number_column("tokens per caption", 1, NOT_RECORDED),
        *_cost_columns(),
    ]
    rows = []
    for _, run in comparison.runs:
        for record in run.phases:
            model = [record.parameters / 1e6, _tokens_per_caption(record)]
            rows.append([run.name, record.step, str(record.phase), *model, *_costs([(run, [record])])])
    return Table("costs_of_phases", "Cost by phase", columns, rows, [FLOPS, HOURS])
