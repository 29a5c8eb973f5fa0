"""Figures: accuracy over the training of a growth step (the paper's Figure 1), and how models grew."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from growclip_ds.architecture import Architecture
from growclip_ds.growth.phases import Phase
from growclip_ds.monitor.figures import NEW, OLD
from growclip_ds.monitor.words import SYMBOLS
from growclip_ds.reporting.comparison import Comparison
from growclip_ds.reporting.groups import Group
from growclip_ds.reporting.runs import ReportedRun

COLOURS = 10  # in Matplotlib's colour cycle, C0 to C9
LINES = ("-", "--", "-.")  # line styles, which tell groups of the same colour apart
MARKER = "o"
LABEL, AXIS, ROW, TITLE_AN_INCH = 55, 45, 26, 11  # maximum characters per line, TITLE_AN_INCH per inch


@dataclass(frozen=True)
class PhaseCurve:
    """Accuracy during a phase.

    Attributes:
        phase: the phase.
        start, end: epochs of the growth step at which it starts and ends, counted over all phases of the step.
        points: epochs of the growth step, and accuracy in percent.
    """

    phase: Phase
    start: float
    end: float
    points: Sequence[tuple[float, float]]


def step_curve(comparison: Comparison, run: ReportedRun, step: int) -> list[PhaseCurve]:
    """The curves of a growth step of a run, one per finished phase."""
    curves, start = [], 0.0
    for record in run.of_step(step):
        evaluated = {point.iteration: comparison.mean_in_training(point.results) for point in record.curve}
        if record.results:
            # the final model, which may be the last point of the curve as well
            evaluated[record.iterations] = comparison.mean_in_training(record.results)
        points = [
            (start + record.epochs_after(iteration), accuracy)
            for iteration, accuracy in sorted(evaluated.items())
            if accuracy is not None
        ]
        end = start + record.epochs_after(record.iterations)
        curves.append(PhaseCurve(record.phase, start, end, points))
        start = end
    return curves


def has_curve(comparison: Comparison, step: int) -> bool:
    """Whether any run was evaluated during a growth step, not only at the end of a phase."""
    return any(
        comparison.mean_in_training(point.results) is not None
        for _, run in comparison.runs
        for record in run.of_step(step)
        for point in record.curve
        if point.iteration < record.iterations
    )


def training_figure(comparison: Comparison, step: int) -> Figure:
    """Draws Figure 1: accuracy over the epochs of a growth step, dotted while a supernet is trained.

    A supernet that was not evaluated is a level line at the accuracy of the step before, whose model is still in use.
    """
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    axes = figure.add_subplot()
    handles: list[Line2D] = []
    ends: dict[tuple[float, str], None] = {}
    for place, group in enumerate(comparison.groups):
        colour, line = f"C{place % COLOURS}", LINES[place // COLOURS % len(LINES)]
        drawn = [curves for run in group.runs if (curves := _drawable(comparison, run, step))]
        for curves in drawn:
            _draw(axes, curves, colour, line)
            ends |= {
                (round(curve.end, 2), str(curve.phase)): None for curve in curves if curve.phase is not Phase.TRAIN
            }
        if drawn:
            label = _plain_text(group.label, LABEL)
            handles.append(Line2D([], [], color=colour, ls=line, marker=MARKER, ms=3, label=label))
    for end, phase in ends:
        axes.axvline(end, color="0.75", lw=0.8, ls=":", zorder=0)
        axes.annotate(
            f"{phase} ends",
            (end, 0),
            xycoords=("data", "axes fraction"),
            xytext=(2, 4),
            textcoords="offset points",
            rotation=90,
            va="bottom",
            fontsize=7,
            color="0.45",
        )
    axes.set_xlim(left=0)
    axes.set_xlabel(f"epochs of growth step {step}")
    axes.set_ylabel(_plain_text(f"{comparison.title_in_training} (%)", AXIS))
    axes.grid(alpha=0.25)
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _drawable(comparison: Comparison, run: ReportedRun, step: int) -> list[PhaseCurve]:
    """The curves of a growth step, with a level line for each supernet that was not evaluated; empty if nothing was."""
    curves = step_curve(comparison, run, step)
    if not any(curve.points for curve in curves):
        return []
    before = run.steps.get(step - 1)
    level = None if before is None else comparison.mean_in_training(before.results)
    if level is None:
        return curves
    return [
        curve
        if curve.points or curve.phase is Phase.TRAIN
        else replace(curve, points=[(curve.start, level), (curve.end, level)])
        for curve in curves
    ]


def _draw(axes: Axes, curves: Sequence[PhaseCurve], colour: str, line: str) -> None:
    """Draws one dotted line over all supernets, and a separate one for the selected model, which has other weights."""
    supernet = [point for curve in curves if curve.phase is not Phase.TRAIN for point in curve.points]
    trained = [point for curve in curves if curve.phase is Phase.TRAIN for point in curve.points]
    if supernet:
        axes.plot(*zip(*supernet, strict=True), ls=":", lw=1.5, color=colour)
    if trained:
        axes.plot(*zip(*trained, strict=True), ls=line, lw=1.3, marker=MARKER, ms=3, color=colour)


def growth_figure(group: Group) -> Figure:
    """Draws a row per run of a group: the six dimensions after every growth step, with what is new highlighted."""
    columns = max(len(run.steps) for run in group.runs)
    figure = Figure(figsize=(1.6 + 2.3 * columns, 0.9 + 2.0 * len(group.runs)), layout="constrained")
    grid = figure.subplots(len(group.runs), columns, sharex=True, sharey=True, squeeze=False)
    for row, run in zip(grid, group.runs, strict=True):
        before: Architecture | None = None
        for axes, step in zip(row, range(1, columns + 1), strict=True):
            record = run.steps.get(step)
            if record is None:
                axes.axis("off")
                continue
            _draw_dimensions(axes, record.architecture, before or record.architecture)
            axes.set_title(f"step {step}: {record.parameters / 1e6:.2f} M", fontsize=9)
            before = record.architecture
        row[0].set_ylabel(_plain_text(run.name, ROW), fontsize=8)
    title = _plain_text(f"Growth path, {group.label}", int(TITLE_AN_INCH * figure.get_figwidth()))
    figure.suptitle(title, fontsize=10)
    handles = [Patch(color=OLD, label="as before"), Patch(color=NEW, label="new in this step")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def has_grown(group: Group) -> bool:
    """Whether the architecture changed between growth steps of any run of the group."""
    return any(len({record.architecture for record in run.steps.values()}) > 1 for run in group.runs)


def _draw_dimensions(axes: Axes, architecture: Architecture, before: Architecture) -> None:
    places = range(len(SYMBOLS))
    sizes, old = astuple(architecture), astuple(before)
    axes.bar(places, sizes, color=NEW)
    axes.bar(places, [min(pair) for pair in zip(sizes, old, strict=True)], color=OLD)
    for place, size in zip(places, sizes, strict=True):
        axes.annotate(str(size), (place, size), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(places, [f"${symbol}$" for symbol in SYMBOLS], fontsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.15)
    axes.tick_params(axis="y", labelsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _plain_text(text: str, width: int) -> str:
    """Wraps text to a width in characters, and escapes dollar signs, with which Matplotlib starts a formula."""
    return textwrap.fill(text, width).replace("$", r"\$")
