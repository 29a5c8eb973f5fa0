"""A report as GitHub-flavoured Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from growclip_ds.reporting.report import Report
from growclip_ds.reporting.table import Table

# Characters that would be read as markup. An underscore within a word would not.
_MARKUP = re.compile(r"([\\`*\[\]<>|~&#])|(?<![^\W_])_|_(?![^\W_])")


def to_markdown(report: Report) -> str:
    """Renders a report as Markdown that refers to its figures as files in the same folder."""
    return "\n".join(_lines(report))


def escaped(text: str) -> str:
    """Escapes text so that Markdown shows it unchanged, on one line."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def _lines(report: Report) -> Iterator[str]:
    yield f"# {escaped(report.title)}"
    yield ""
    for note in report.notes:
        yield f"- {escaped(note)}"
    if report.notes:
        yield ""
    for table in report.tables:
        yield from _table(table)
    for figure in report.figures:
        yield f"## {escaped(figure.title)}"
        yield ""
        yield f"![{escaped(figure.title)}]({figure.file})"
        yield ""
        yield escaped(figure.caption)
        yield ""


def _table(table: Table) -> Iterator[str]:
    yield f"## {escaped(table.title)}"
    yield ""
    yield _row([column.title for column in table.columns])
    yield f"| {' | '.join('---:' if column.right else '---' for column in table.columns)} |"
    for row in table.cells():
        yield _row(row)
    yield ""
    for note in table.notes:
        yield escaped(note)
        yield ""


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"
