"""A table as data: columns, and rows of values. How it looks is the writers' business (`markdown.py`, `html_page.py`).

A value is as measured, unrounded; its column knows how to format it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from growclip_ds.architecture import Architecture

NONE = "–"
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Spread:
    """A figure over several runs.

    Attributes:
        mean: mean over the runs.
        deviation: sample standard deviation (n - 1); None for a single run.
        runs: their number, n.
    """

    mean: float
    deviation: float | None
    runs: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Over the runs that have a value; None if none has."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))

    def shown(self, form: Callable[[float], str], signed: str = "") -> str:
        """`42.0 ± 0.3 (3)`, in brackets the runs, or `42.0` of a single one."""
        mean = f"{signed if self.mean >= 0 else ''}{form(self.mean)}"
        return mean if self.deviation is None else f"{mean} ± {form(self.deviation)} ({self.runs})"


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        title: at its head.
        form: a value that is there as text.
        absent: what stands where there is no value (None).
        right: whether it is aligned to the right, as numbers are.
    """

    title: str
    form: Callable[[Any], str] = str
    absent: str = NONE
    right: bool = True


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: one word, for files and programs.
        title: the heading shown to readers.
        columns: at least one.
        rows: a value for each column, or None.
        notes: how to read it, one or more sentences each.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()

    def cells(self) -> list[list[str]]:
        """The rows as text."""
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


def count_column(title: str, absent: str = NONE) -> Column:
    """A column of whole numbers: `1,714,112`."""
    return Column(title, lambda value: f"{value:,}", absent)


def number_column(title: str, digits: int, absent: str = NONE, signed: bool = False) -> Column:
    """A column of numbers, or of spreads of numbers."""
    sign = "+" if signed else ""

    def form(value: float | Spread) -> str:
        if isinstance(value, Spread):
            return value.shown(lambda number: f"{number:,.{digits}f}", sign)
        return f"{value:{sign},.{digits}f}"

    return Column(title, form, absent)


def scientific_column(title: str, absent: str = NONE) -> Column:
    """A column of numbers of any size, or of spreads of them: `1.23e+15`."""

    def form(value: float | Spread) -> str:
        return value.shown(lambda number: f"{number:.2e}") if isinstance(value, Spread) else f"{value:.2e}"

    return Column(title, form, absent)


def switch_column(title: str) -> Column:
    """A column of what was on or off: `✓`, `✗`."""
    return Column(title, lambda on: "✓" if on else "✗", right=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Spread | Architecture):
        return asdict(value)
    return value
