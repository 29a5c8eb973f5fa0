"""A table as data: columns, and rows of values; `markdown.py` and `html_page.py` render it.

Values are stored as measured, unrounded; their column formats them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from growclip_ds.architecture import Architecture
from growclip_ds.monitor.words import NONE

NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Spread:
    """A value over several runs.

    Attributes:
        mean: mean over the runs.
        deviation: sample standard deviation (n - 1); None for a single run.
        runs: number of runs, n.
    """

    mean: float
    deviation: float | None
    runs: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Summarises the runs that have a value; None if none has."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))

    def shown(self, form: Callable[[float], str], signed: str = "") -> str:
        """`42.0 ± 0.3 (3)`, with the number of runs in brackets, or `42.0` for a single run."""
        mean = f"{signed if self.mean >= 0 else ''}{form(self.mean)}"
        return mean if self.deviation is None else f"{mean} ± {form(self.deviation)} ({self.runs})"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: the header.
        form: formats a value that is not None.
        absent: the text for a missing value (None).
        right: whether to align the column to the right, as for numbers.
    """

    title: str
    form: Callable[[Any], str] = str
    absent: str = NONE
    right: bool = True


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        name: identifier, for JSON and HTML.
        title: the heading shown to readers.
        columns: the columns, at least one.
        rows: one value per column each, None where it is missing.
        notes: how to read the table, one or more sentences each.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()

    def cells(self) -> list[list[str]]:
        """Formats the rows as text."""
        return [
            [
                column.absent if value is None else column.form(value)
                for column, value in zip(self.columns, row, strict=True)
            ]
            for row in self.rows
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "columns": [column.title for column in self.columns],
            "rows": [[_plain(value) for value in row] for row in self.rows],
            "notes": list(self.notes),
        }


def text_column(title: str, absent: str = NONE) -> Column:
    return Column(title, absent=absent, right=False)


def count_column(title: str) -> Column:
    """A column of whole numbers: `1,714,112`."""
    return Column(title, lambda value: f"{value:,}")


def number_column(title: str, digits: int, absent: str = NONE, signed: bool = False) -> Column:
    """A column of numbers, or of their spreads, with a fixed number of decimal digits."""
    sign = "+" if signed else ""

    def form(value: float | Spread) -> str:
        if isinstance(value, Spread):
            return value.shown(lambda number: f"{number:,.{digits}f}", sign)
        return f"{value:{sign},.{digits}f}"

    return Column(title, form, absent)


def scientific_column(title: str, absent: str = NONE) -> Column:
    """A column of numbers of any magnitude, or of their spreads: `1.23e+15`."""

    def form(value: float | Spread) -> str:
        return value.shown(lambda number: f"{number:.2e}") if isinstance(value, Spread) else f"{value:.2e}"

    return Column(title, form, absent)


def switch_column(title: str) -> Column:
    """A column of booleans: `✓`, `✗`."""
    return Column(title, lambda on: "✓" if on else "✗", right=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Spread | Architecture):
        return asdict(value)
    return value
