"""Figures draw every layer and every candidate, and tell the old from the new."""

from __future__ import annotations

from typing import Any

import pytest

from growclip_ds import Architecture
from growclip_ds.monitor.figures import architecture_figure, selection_figure
from tests.monitor.runs import BASE, SIZES, candidates


def test_architecture_figure():
    def bars(figure: Any) -> list[float]:
        return [patch.get_width() for patch in figure.axes[0].patches if patch.get_width()]

    new, old = Architecture(1, 3, 2, 2, 3, 2), Architecture(0, 2, 2, 2, 1, 0)
    # Stem, patches, tokens and blocks of the new; each has its old part inside, but what is new altogether.
    layers = 2 + 1 + 3 + 1 + 2 + 2
    assert len(bars(architecture_figure(new))) == 2 * layers
    grown = bars(architecture_figure(new, old))
    assert len(grown) == 2 * layers - (1 + 1 + 2)
    assert grown.count(192) == 1 + 2 + 2
    assert grown.count(64) == 2 + 1 + 3  # convolutions, and the old text width inside the new
    assert architecture_figure(new, old).axes[0].get_title() == f"{new}, grown from {old}"


def test_selection_figure():
    ranked = candidates()
    axes = selection_figure(ranked).axes[0]
    points, base, best = (collection.get_offsets() for collection in axes.collections)
    assert len(points) == 64
    accuracy = next(row.accuracy for row in ranked if row.architecture == BASE)
    assert base[0].tolist() == pytest.approx([SIZES.parameters_of(BASE) / 1e6, accuracy])
    assert best[0].tolist() == pytest.approx([1.234567, 41.234])
    assert axes.get_title() == "64 candidates; growing b^I h^T is best"
