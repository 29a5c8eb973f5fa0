"""Tables of the growth steps of a run for the terminal, and of architectures and candidates for TensorBoard."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from shlex import quote
from typing import TextIO

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from growclip_ds.architecture import Architecture
from growclip_ds.growth.selection import Candidate
from growclip_ds.monitor.summary import StepSummary
from growclip_ds.monitor.words import LEGEND, NONE, SYMBOLS, duration, grown, millions, smallest

WIDTH = 100  # columns, where the output is not a terminal
FOLDED = 12  # minimum width of a column that may be folded
MOST_SET_COLUMNS = 2  # more sets get a table of their own
BEST_CANDIDATES = 3
_GAP, _EDGE = 3, 1  # blanks between columns and at the edges of a `plain_table`
_FILLED_UP = re.compile(r"(?: |\x1b\[[\d;]*m)+$", re.MULTILINE)  # Rich pads lines with blanks, in the style of the text


def print_summary(summaries: Sequence[StepSummary], run: Path, stream: TextIO | None = None) -> None:
    """Prints the growth steps of a run, the best candidates, and the command that shows its curves."""
    print_plainly(_summary(summaries, run), stream)


def print_plainly(renderables: Iterable[RenderableType], stream: TextIO | None = None) -> None:
    """Prints tables and texts without trailing blanks, by default to standard output.

    A table that is too wide for the terminal is not truncated: its lines wrap.
    """
    console = Console(file=stream, highlight=False)
    width = console.width if console.is_terminal else WIDTH
    with console.capture() as capture:
        for renderable in renderables:
            console.width = max(width, _least_width(console, renderable)) if isinstance(renderable, Table) else width
            console.print(renderable)
    text = _FILLED_UP.sub(lambda end: end[0].replace(" ", ""), capture.get())
    encoding = console.encoding
    console.file.write(text.encode(encoding, "replace").decode(encoding))  # a C locale cannot encode arrows
    console.file.flush()


def _least_width(console: Console, table: Table) -> int:
    """The width at which a table breaks no cell, except in columns that may be folded to `FOLDED` characters."""
    widths = []
    for column in table.columns:
        width = max(console.measure(cell).maximum for cell in (column.header, *column.cells))
        if not column.no_wrap:
            width = min(width, FOLDED)
            column.overflow = "fold"  # even within words; Rich's default is an ellipsis
        widths.append(width)
    return sum(widths) + _GAP * (len(widths) - 1) + 2 * _EDGE


def _summary(summaries: Sequence[StepSummary], run: Path) -> Iterator[RenderableType]:
    sets = list(dict.fromkeys(name for summary in summaries for name in summary.after))
    averaged = summaries[-1].averaged if summaries else ()
    yield _steps_table(summaries, sets, averaged)
    if len(sets) > MOST_SET_COLUMNS:
        yield _sets_table(summaries, sets, averaged)
    if any(summary.candidates for summary in summaries):
        yield _candidates_table(summaries)
    notes = [f"Architectures are ({', '.join(SYMBOLS)}): {LEGEND}."]
    if sets:
        notes.append("Zero-shot accuracy in percent, before and after the step: top-1; for retrieval, mean R@1.")
    yield Padding("\n".join(notes), (0, 1, 1, 1))
    yield Text(f" Curves: tensorboard --logdir {quote(str(run))}", no_wrap=True, overflow="ignore")


def plain_table(title: str) -> Table:
    """Returns a table without columns, in the style that all tables share."""
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _steps_table(summaries: Sequence[StepSummary], sets: Sequence[str], averaged: Sequence[str]) -> Table:
    table = plain_table("Growth steps")
    columns = list(sets) if len(sets) <= MOST_SET_COLUMNS else [f"mean of {len(averaged)} sets"]
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("samples", justify="right", no_wrap=True)
    table.add_column("architecture", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("time", justify="right", no_wrap=True)
    for summary in summaries:
        shown = [_change(summary, [name]) for name in sets] if columns == list(sets) else [_change(summary, averaged)]
        table.add_row(
            str(summary.step),
            f"{summary.samples:,}",
            str(summary.architecture),
            millions(summary.parameters),
            *shown,
            duration(summary.seconds),
        )
    return table


def _sets_table(summaries: Sequence[StepSummary], sets: Sequence[str], averaged: Sequence[str]) -> Table:
    table = plain_table("Zero-shot accuracy by set")
    table.add_column("set")
    for summary in summaries:
        table.add_column(f"step {summary.step}", justify="right", no_wrap=True)
    for name in sets:
        table.add_row(name, *(_percent(summary.after, [name]) for summary in summaries))
    table.add_section()
    table.add_row(f"mean of {len(averaged)}", *(_percent(summary.after, averaged) for summary in summaries))
    return table


def _candidates_table(summaries: Sequence[StepSummary]) -> Table:
    sets = dict.fromkeys(summary.selection_set for summary in summaries if summary.selection_set)
    table = plain_table(f"Best candidates by accuracy{' on ' if sets else ''}{' and '.join(sets)} and by size (Eq. 7)")
    for name in ("step", "rank", "candidate", "grows", "parameters", "accuracy", "metric"):
        table.add_column(name, justify="left" if name in ("rank", "candidate", "grows") else "right", no_wrap=True)
    for summary in summaries:
        if not summary.candidates:
            continue
        base = smallest(candidate.architecture for candidate in summary.candidates)
        for place, candidate in enumerate(summary.candidates[:BEST_CANDIDATES], start=1):
            first = place == 1  # the candidate that was selected
            table.add_row(
                str(summary.step) if first else "",
                f"1 of {len(summary.candidates)}" if first else str(place),
                *_cells(candidate, grown(candidate.architecture, base)),
                style="bold" if first else "",
            )
        table.add_section()
    return table


def architecture_markdown(architecture: Architecture, before: Architecture | None, parameters: int) -> str:
    """The six integers of an architecture and of the one that it grew from, as a table for TensorBoard."""
    names = [name.replace("_", " ") for name, _ in architecture.items()]
    lines = [
        f"| | {' | '.join(names)} | parameters |",
        f"| --- | {' | '.join(['---:'] * len(names))} | ---: |",
        f"| this | {' | '.join(map(str, astuple(architecture)))} | {parameters:,} |",
    ]
    if before is not None:
        lines.append(f"| grown from | {' | '.join(map(str, astuple(before)))} | |")
    return "\n".join(lines)


def candidates_markdown(candidates: Sequence[Candidate]) -> str:
    """Candidates, given best first, as a table for TensorBoard."""
    base = smallest(candidate.architecture for candidate in candidates)
    lines = [
        f"Architectures are ({', '.join(SYMBOLS)}): {LEGEND}. The first one is selected.",
        "",
        "| | candidate | grows | parameters | accuracy | metric |",
        "| ---: | --- | --- | ---: | ---: | ---: |",
    ]
    for place, candidate in enumerate(candidates, start=1):
        lines.append(f"| {place} | {' | '.join(_cells(candidate, grown(candidate.architecture, base)))} |")
    return "\n".join(lines)


def _cells(candidate: Candidate, growth: str) -> tuple[str, ...]:
    accuracy, metric = f"{candidate.accuracy:.2f}", f"{candidate.metric:.2f}"
    return str(candidate.architecture), growth, millions(candidate.parameters), accuracy, metric


def _change(summary: StepSummary, sets: Sequence[str]) -> str:
    return f"{_percent(summary.before, sets)} → {_percent(summary.after, sets)}"


def _percent(accuracies: Mapping[str, float], sets: Sequence[str]) -> str:
    """The mean accuracy over sets, or `NONE` if one of them was not evaluated."""
    if not sets or any(name not in accuracies for name in sets):
        return NONE
    return f"{sum(accuracies[name] for name in sets) / len(sets):.1f}"
