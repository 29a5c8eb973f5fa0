"""Figures of an architecture, and of the candidates from which one was selected."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from growclip_ds.architecture import STEM_CHANNELS, Architecture
from growclip_ds.growth.selection import Candidate
from growclip_ds.monitor.words import grown, millions, smallest

OLD, NEW = "#9db4c8", "#f2a65a"
LAYER, GAP = 1.0, 0.22  # heights; widths are in channels
MARGIN = 0.35  # between the towers, as a fraction of the widest layer


def architecture_figure(architecture: Architecture, before: Architecture | None = None) -> Figure:
    """Draws an architecture from its inputs up: one bar per layer, whose width is the number of channels.

    Args:
        architecture: the architecture to draw.
        before: the architecture that it grew from; what is new is highlighted. None: nothing is.
    """
    new, old = architecture, before or architecture
    image = _layers(STEM_CHANNELS, STEM_CHANNELS, new.conv_layers + 1, old.conv_layers + 1)
    image += _layers(new.image_width, old.image_width, new.image_blocks + 1, old.image_blocks + 1)
    text = _layers(new.text_width, old.text_width, new.text_blocks + 1, old.text_blocks + 1)
    shared = _layers(new.shared_width, old.shared_width, new.shared_blocks, old.shared_blocks)

    widest = max(new.shared_width, STEM_CHANNELS)
    centre = widest * (1 + MARGIN) / 2
    layers = max(len(image), len(text)) + len(shared)
    figure = Figure(figsize=(6.4, min(12.0, 2.4 + 0.27 * layers)), layout="constrained")
    axes = figure.add_subplot()
    tops = {x: _stack(axes, x, 0, tower) for x, tower in ((-centre, image), (centre, text))}
    bottom = max(tops.values()) + LAYER + GAP
    top = _stack(axes, 0, bottom, shared)
    if shared:
        for x, y in tops.items():
            axes.plot([x, x / 4], [y, bottom - GAP], color=OLD, lw=1, zorder=0)

    convolutions, image_blocks = _count(new.conv_layers + 1, "convolution"), _count(new.image_blocks, "block")
    heads, text_heads = _count(new.image_heads, "head"), _count(new.text_heads, "head")
    shared_blocks = f"{_count(new.shared_blocks, 'shared block')}, {new.shared_width} channels"
    for x, y, alignment, words in (
        (-centre, -2 * GAP, "top", f"images\n{convolutions}, patches, {image_blocks}, {heads}"),
        (centre, -2 * GAP, "top", f"captions\ntokens, {_count(new.text_blocks, 'block')}, {text_heads}"),
        (0, top + GAP, "bottom", shared_blocks if shared else "no shared blocks"),
    ):
        axes.text(x, y, words, ha="center", va=alignment, fontsize=8)
    axes.set_xlim(-centre - 0.62 * widest, centre + 0.62 * widest)
    axes.set_ylim(-2.6, top + 2 * LAYER)
    axes.axis("off")
    grew = before is not None and before != architecture
    axes.set_title(f"{architecture}, grown from {before}" if grew else str(architecture), fontsize=10)
    if grew:
        handles = [Patch(color=OLD, label="inherited"), Patch(color=NEW, label="new")]
        axes.legend(handles=handles, loc="upper left", frameon=False, fontsize=8)
    return figure


def _layers(width: int, old_width: int, count: int, old_count: int) -> list[tuple[int, int]]:
    """The channels of each layer, now and before growth."""
    return [(width, old_width if layer < old_count else 0) for layer in range(count)]


def _stack(axes: Axes, x: float, bottom: float, layers: Sequence[tuple[int, int]]) -> float:
    """Stacks layers from the bottom up, with old channels drawn inside new ones; returns the upper edge."""
    for place, (width, old) in enumerate(layers):
        y = bottom + place * (LAYER + GAP)
        axes.add_patch(Rectangle((x - width / 2, y), width, LAYER, fc=NEW))
        axes.add_patch(Rectangle((x - min(width, old) / 2, y), min(width, old), LAYER, fc=OLD))
    return bottom + len(layers) * (LAYER + GAP)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def selection_figure(candidates: Sequence[Candidate]) -> Figure:
    """Plots the accuracy of candidates, given best first, over their parameters, coloured by Eq. 7; marks the best."""
    base = smallest(candidate.architecture for candidate in candidates)
    best = candidates[0]
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    points = axes.scatter(
        [candidate.parameters / 1e6 for candidate in candidates],
        [candidate.accuracy for candidate in candidates],
        c=[candidate.metric for candidate in candidates],
        cmap="viridis",
        s=36,
    )
    marked = [(candidate, "s", "no growth") for candidate in candidates if candidate.architecture == base]
    marked.append((best, "*", f"chosen: {best.architecture}, {millions(best.parameters)}"))
    for candidate, marker, label in marked:
        place = candidate.parameters / 1e6, candidate.accuracy
        axes.scatter(*place, marker=marker, s=210, fc="none", ec="#d1495b", lw=1.5, label=label)
    figure.colorbar(points, label="accuracy and size (Eq. 7)")
    axes.set_xlabel("parameters (millions)")
    axes.set_ylabel("zero-shot accuracy (%)")
    axes.set_title(f"{len(candidates)} candidates; growing {grown(best.architecture, base)} is best", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="best", markerscale=0.6)
    return figure
