"""The contents of a report: those tables and figures for which the given runs have data."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.figure

from growclip_ds.reporting.accuracy_tables import (
    ablations,
    candidates_of_one_dimension,
    growth_steps,
    methods,
    one_dimension,
    retrieval,
)
from growclip_ds.reporting.comparison import Comparison, compare
from growclip_ds.reporting.cost_tables import costs, costs_of_phases
from growclip_ds.reporting.figures import growth_figure, has_curve, has_grown, training_figure
from growclip_ds.reporting.runs import ReportedRun
from growclip_ds.reporting.table import Table, count_column, text_column

DOTS_PER_INCH = 130


@dataclass(frozen=True)
class Figure:
    """A figure of a report.

    Attributes:
        file: the name of its file.
        title, caption: the heading and the explanation shown to readers.
        png: the encoded image.
    """

    file: str
    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Report:
    """A report as data, independent of the output format.

    Attributes:
        title: the heading shown to readers.
        notes: what readers must know first.
        tables, figures: the contents, in order.
    """

    title: str
    notes: Sequence[str]
    tables: Sequence[Table]
    figures: Sequence[Figure]

    def to_json(self) -> dict[str, Any]:
        """The data of the report, not rounded; figures by name only."""
        return {
            "title": self.title,
            "notes": list(self.notes),
            "tables": [table.to_json() for table in self.tables],
            "figures": [{"file": figure.file, "title": figure.title} for figure in self.figures],
        }


def make_report(runs: Sequence[ReportedRun]) -> Report:
    """Makes the report on some runs.

    Raises:
        InputError: the runs cannot be compared.
    """
    comparison = compare(runs)
    title = "GrowCLIP: " + (runs[0].name if len(runs) == 1 else f"{len(runs)} runs")
    return Report(title, comparison.notes, make_tables(comparison), list(_figures(comparison)))


def make_tables(comparison: Comparison) -> list[Table]:
    """Makes the tables for which the runs have data."""
    tables: list[Table | None] = [_runs(comparison)]
    if comparison.steps:
        tables += [methods(comparison), growth_steps(comparison), retrieval(comparison), ablations(comparison)]
        tables += [one_dimension(comparison), candidates_of_one_dimension(comparison), costs(comparison)]
    if any(run.phases for _, run in comparison.runs):
        tables.append(costs_of_phases(comparison))
    return [table for table in tables if table is not None]


def _runs(comparison: Comparison) -> Table:
    columns = [text_column("run"), text_column("method"), count_column("seed"), text_column("finished")]
    rows = [[run.name, group.label, run.config.seed, run.progress()] for group, run in comparison.runs]
    return Table("runs", "Runs", columns, rows)


def _figures(comparison: Comparison) -> Iterator[Figure]:
    begun = max((record.step for _, run in comparison.runs for record in run.phases), default=0)
    for step in range(1, begun + 1):
        if has_curve(comparison, step):
            yield Figure(
                f"accuracy_step_{step}.png",
                f"Accuracy over the training of growth step {step} (Figure 1)",
                "One line per run. Dotted: a supernet is trained; level, at the accuracy of the step before, where the "
                "supernet was not evaluated.",
                _png(training_figure(comparison, step)),
            )
    for place, group in enumerate(comparison.groups, start=1):
        if has_grown(group):
            yield Figure(
                f"growth_{place}_{_slug(group.label)}.png",
                f"Growth path, {group.label}",
                "Layers and heads after every growth step: l^I convolutions, b^I h^I image and b^T h^T text blocks and "
                "heads, b^S shared blocks.",
                _png(growth_figure(group)),
            )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:60]


def _png(figure: matplotlib.figure.Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return stream.getvalue()
