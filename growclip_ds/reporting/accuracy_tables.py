"""Accuracy tables, in the form of the paper's Tables 3, 4, 5 and 9."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from growclip_ds.monitor.words import LEGEND, SYMBOLS, smallest
from growclip_ds.reporting.comparison import Comparison
from growclip_ds.reporting.groups import DIMENSIONS, SWITCHES, Group, symbol_of
from growclip_ds.reporting.runs import ReportedRun
from growclip_ds.reporting.table import Column, Spread, Table, count_column, number_column, switch_column, text_column
from growclip_ds.results import RetrievalResult
from growclip_ds.run.records import PhaseRecord

ARCHITECTURES = f"Architectures are ({', '.join(SYMBOLS)}): {LEGEND}."
RECALLS = (1, 5, 10)


def growth_steps(comparison: Comparison) -> Table:
    """Table 3: one row per growth step and run, with the accuracy on every set."""
    mean = len(comparison.averaged) > 1
    sets = [*comparison.classification, *comparison.retrieval]
    columns = [
        count_column("step"),
        text_column("method"),
        text_column("run"),
        count_column("samples"),
        number_column("parameters (M)", 2),
        text_column("architecture"),
        *(number_column(name, 1) for name in sets),
    ]
    if mean:
        columns.append(number_column(f"mean of {len(comparison.averaged)}", 1))
    rows = []
    for step in comparison.steps:
        for group, run in comparison.runs:
            if record := run.steps.get(step):
                accuracies = [record.results[name].accuracy if name in record.results else None for name in sets]
                accuracies += [comparison.mean(record.results)] if mean else []
                model = [record.parameters / 1e6, record.architecture]
                rows.append([step, group.label, run.name, record.samples, *model, *accuracies])
    notes = [ARCHITECTURES]
    if sets:
        notes.append("Zero-shot accuracy in percent: top-1; for retrieval, the mean of both directions' R@1.")
    if mean:
        notes.append(f"The mean is over {', '.join(comparison.averaged)}.")
    return Table("growth_steps", "Growth steps (Table 3)", columns, rows, notes)


def methods(comparison: Comparison) -> Table | None:
    """Tables 3 and 4 in brief: mean accuracy of every method after every growth step; None if none was evaluated."""
    if not comparison.averaged:
        return None
    columns = [text_column("method"), count_column("runs")]
    columns += [number_column(f"step {step}", 1) for step in comparison.steps]
    rows = [
        [group.label, len(group.runs), *(comparison.accuracy(group, step) for step in comparison.steps)]
        for group in comparison.groups
    ]
    title = f"Methods by growth step: {comparison.accuracy_title} (%)"
    return Table("methods", title, columns, rows, comparison.spread_notes)


def retrieval(comparison: Comparison) -> Table | None:
    """Table 4: recall in both directions on every retrieval set; None if there is no such set."""
    if not comparison.retrieval:
        return None
    columns = [count_column("step"), text_column("method")]
    for name in comparison.retrieval:
        columns += [number_column(f"{name} {way} R@{k}", 1) for way in ("i→t", "t→i") for k in RECALLS]
    rows = [
        [step, group.label, *_recalls(comparison, group, step)]
        for step in comparison.steps
        for group in comparison.groups
        if any(step in run.steps for run in group.runs)
    ]
    notes = ["R@k (%): i→t, images with a right caption among the first k; t→i, captions with a right image."]
    notes += comparison.spread_notes
    return Table("retrieval", "Zero-shot retrieval (Table 4)", columns, rows, notes)


def _recalls(comparison: Comparison, group: Group, step: int) -> Iterator[Spread | None]:
    for name in comparison.retrieval:
        results = [run.steps[step].results.get(name) for run in group.runs if step in run.steps]
        recalled = [result for result in results if isinstance(result, RetrievalResult)]
        for way in ("image_to_text", "text_to_image"):
            for k in RECALLS:
                yield Spread.of(getattr(result, way).get(k) for result in recalled)


def ablations(comparison: Comparison) -> Table | None:
    """Table 5: GrowCLIP without parts of a growth step, next to full GrowCLIP; None if nothing is ablated."""
    whole: dict[str, list[Group]] = {}  # by the settings that are no ablation
    for group in comparison.groups:
        if group.method == "growclip" and group.settings["ablation.grow_only"] is None:
            others = {key: value for key, value in group.settings.items() if not key.startswith("ablation.")}
            whole.setdefault(repr(others), []).append(group)
    groups = [group for alike in whole.values() if any(map(_left_out, alike)) for group in alike]
    if not groups:
        return None
    groups.sort(key=_left_out)
    steps = [step for step in comparison.steps if step > 1]
    columns = [*(switch_column(name) for name in SWITCHES.values()), text_column("method"), count_column("runs")]
    for step in steps:
        columns += [number_column(f"step {step} parameters (M)", 2), number_column(f"step {step} accuracy", 1)]
    rows = []
    for group in groups:
        switches = [group.settings[f"ablation.{switch}"] for switch in SWITCHES]
        figures = [f(group, step) for step in steps for f in (comparison.parameters, comparison.accuracy)]
        rows.append([*switches, group.label, len(group.runs), *figures])
    notes = [
        "PIM@1 and PIM@3: parameter inheriting with momentum before phases 1 and 3; ST: supernet fine-tuning, phase 1; "
        "GAS: growth architecture selection, phase 2.",
        *comparison.accuracy_notes,
        *comparison.spread_notes,
    ]
    return Table("ablations", "Ablations of a growth step (Table 5)", columns, rows, notes)


def _left_out(group: Group) -> int:
    return sum(not group.settings[f"ablation.{switch}"] for switch in SWITCHES)


def one_dimension(comparison: Comparison) -> Table | None:
    """Table 9 for trained models, each of which grows in a single dimension; None if there are none."""
    key = "ablation.grow_only"
    groups = [group for group in comparison.groups if group.settings[key] is not None]
    if not groups:
        return None
    groups.sort(key=lambda group: DIMENSIONS.index(group.settings[key]))
    steps = [step for step in comparison.steps if step > 1]
    columns = [text_column("grows"), text_column("method"), count_column("runs")]
    rows: list[list[Any]] = [[symbol_of(group.settings[key]), group.label, len(group.runs)] for group in groups]
    for step in steps:
        columns += _growth_columns(step, "over the step before")
        columns.append(number_column(f"step {step} accuracy", 2))
        for row, group in zip(rows, groups, strict=True):
            pairs = [(run.steps[step - 1], run.steps[step]) for run in group.runs if {step - 1, step} <= set(run.steps)]
            row += [
                Spread.of((new.parameters - old.parameters) / 1e6 for old, new in pairs),
                Spread.of(_difference(comparison, old, new) for old, new in pairs),
                comparison.accuracy(group, step),
            ]
    notes = [
        "Trained in full. Accuracy gains are over the model of the step before, so part of them is due to more data.",
        *comparison.accuracy_notes,
        *comparison.spread_notes,
    ]
    return Table("one_dimension", "Growth of one dimension, trained (Table 9)", columns, rows, notes)


def _difference(comparison: Comparison, old: PhaseRecord, new: PhaseRecord) -> float | None:
    before, after = comparison.mean(old.results), comparison.mean(new.results)
    return None if before is None or after is None else after - before


def _growth_columns(step: int, over: str) -> list[Column]:
    return [
        number_column(f"step {step} parameters (M)", 2, signed=True),
        number_column(f"step {step} accuracy {over}", 2, signed=True),
    ]


def candidates_of_one_dimension(comparison: Comparison) -> Table | None:
    """Table 9 for candidates: growth in a single dimension compared with no growth, both with the supernet's weights.

    Ablated runs are left out. None if no step selected among candidates.
    """
    steps = [step for step in comparison.steps if any(_selection(run, step) is not None for _, run in comparison.runs)]
    columns = [text_column("grows"), text_column("method")]
    for step in steps:
        columns += _growth_columns(step, "over no growth")
    rows = []
    for group in comparison.groups:
        if group.is_ablated:
            continue
        for dimension in DIMENSIONS:
            figures: list[Spread | None] = []
            for step in steps:
                gains = [gain for run in group.runs if (gain := _gain(run, step, dimension)) is not None]
                figures += [Spread.of(parameters for parameters, _ in gains), Spread.of(gain for _, gain in gains)]
            if any(figure is not None for figure in figures):
                rows.append([symbol_of(dimension), group.label, *figures])
    if not rows:
        return None
    sets = dict.fromkeys(
        record.selection_set for _, run in comparison.runs for record in run.phases if record.selection_set
    )
    notes = [
        "Candidates of a growth step, evaluated with the weights of its supernet, not trained on their own; gains are "
        "over the candidate that does not grow.",
        f"Accuracy in percent on {', '.join(sets)}.",
        *comparison.spread_notes,
    ]
    return Table(
        "candidates_of_one_dimension", "Growth of one dimension, in the supernet (Table 9)", columns, rows, notes
    )


def _selection(run: ReportedRun, step: int) -> PhaseRecord | None:
    return next((record for record in run.of_step(step) if record.candidates), None)


def _gain(run: ReportedRun, step: int, dimension: str) -> tuple[float, float] | None:
    """Gain of the candidate that grows only in one dimension, over the base: millions of parameters, and percent."""
    record = _selection(run, step)
    if record is None:
        return None
    by_architecture = {candidate.architecture: candidate for candidate in record.candidates}
    base = smallest(by_architecture)
    most = max(getattr(architecture, dimension) for architecture in by_architecture)
    grown = replace(base, **{dimension: most})
    if grown == base or grown not in by_architecture:
        return None
    old, new = by_architecture[base], by_architecture[grown]
    return (new.parameters - old.parameters) / 1e6, new.accuracy - old.accuracy
