"""Tables of a run's growth steps for the terminal, and of all candidates for TensorBoard."""

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
from growclip_ds.growth.selection import Candidate, best_first
from growclip_ds.monitor.summary import StepSummary
from growclip_ds.monitor.words import LEGEND, NONE, SYMBOLS, duration, grown, millions, smallest

WIDTH = 100  # columns, where the output is no terminal
FOLDED = 12  # characters in a line of a column that may be folded, at least
MOST_SET_COLUMNS = 2  # beyond, the sets have a table of their own
BEST_CANDIDATES = 3
_GAP, _EDGE = 3, 1  # blanks between columns and beside them, as `plain_table` has them
_FILLED_UP = re.compile(r"(?: |\x1b\[[\d;]*m)+$", re.MULTILINE)  # with blanks, as Rich does, in the text's style


def print_summary(summaries: Sequence[StepSummary], run: Path, stream: TextIO | None = None) -> None:
    """Prints what a run came to, what was chosen and why, and how to see its curves."""
    print_plainly(_summary(summaries, run), stream)


def print_plainly(renderables: Iterable[RenderableType], stream: TextIO | None = None) -> None:
    """Prints tables and texts, without blanks at the ends of lines, to standard output by default.

    Of a table that is too wide for the terminal nothing is cut off: its lines go on below.
    """
    console = Console(file=stream, highlight=False)
    width = console.width if console.is_terminal else WIDTH
    with console.capture() as capture:
        for renderable in renderables:
            console.width = max(width, _least_width(console, renderable)) if isinstance(renderable, Table) else width
            console.print(renderable)
    text = _FILLED_UP.sub(lambda end: end[0].replace(" ", ""), capture.get())
    encoding = console.encoding
    console.file.write(text.encode(encoding, "replace").decode(encoding))  # a C locale has no arrows
    console.file.flush()


def _least_width(console: Console, table: Table) -> int:
    """Of a table with whole numbers, and some room in the columns that may be folded."""
    widths = []
    for column in table.columns:
        width = max(console.measure(cell).maximum for cell in (column.header, *column.cells))
        if not column.no_wrap:
            width = min(width, FOLDED)
            column.overflow = "fold"  # words, too; Rich's default is an ellipsis
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
    notes = (
        f"Architectures are ({', '.join(SYMBOLS)}): {LEGEND}.",
        "Zero-shot accuracy in percent, before and after the step: top-1; for retrieval, mean R@1.",
    )
    yield Padding("\n".join(notes), (0, 1, 1, 1))
    yield Text(f" Curves: tensorboard --logdir {quote(str(run))}", no_wrap=True, overflow="ignore")


def plain_table(title: str) -> Table:
    """A table without columns yet, as all of them look."""
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
        ranked = best_first(summary.candidates)
        for place, candidate in enumerate(ranked[:BEST_CANDIDATES], start=1):
            first = place == 1  # the one that was taken
            table.add_row(
                str(summary.step) if first else "",
                f"1 of {len(ranked)}" if first else str(place),
                *_cells(candidate, grown(candidate.architecture, base)),
                style="bold" if first else "",
            )
        table.add_section()
    return table


def architecture_markdown(architecture: Architecture, before: Architecture | None, parameters: int) -> str:
    """The six integers of an architecture, and of what it grew from, as a table for TensorBoard."""
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
    """Every candidate, best first, as a table for TensorBoard."""
    base = smallest(candidate.architecture for candidate in candidates)
    lines = [
        f"Architectures are ({', '.join(SYMBOLS)}): {LEGEND}. The first is taken.",
        "",
        "| | candidate | grows | parameters | accuracy | metric |",
        "| ---: | --- | --- | ---: | ---: | ---: |",
    ]
    for place, candidate in enumerate(best_first(candidates), start=1):
        lines.append(f"| {place} | {' | '.join(_cells(candidate, grown(candidate.architecture, base)))} |")
    return "\n".join(lines)


def _cells(candidate: Candidate, growth: str) -> tuple[str, ...]:
    accuracy, metric = f"{candidate.accuracy:.2f}", f"{candidate.metric:.2f}"
    return str(candidate.architecture), growth, millions(candidate.parameters), accuracy, metric


def _change(summary: StepSummary, sets: Sequence[str]) -> str:
    return f"{_percent(summary.before, sets)} → {_percent(summary.after, sets)}"


def _percent(accuracies: Mapping[str, float], sets: Sequence[str]) -> str:
    """The mean over sets, where all of them were evaluated."""
    if not sets or any(name not in accuracies for name in sets):
        return NONE
    return f"{sum(accuracies[name] for name in sets) / len(sets):.1f}"
