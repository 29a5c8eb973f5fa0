from __future__ import annotations

import pytest

from growclip_ds import Architecture, composite_metric
from growclip_ds.growth.selection import rank_candidates


def test_the_composite_metric_is_equation_7():
    # 25.7 % for the paper's S2 (116.6 M) in its supernet, when 3 million samples have become 6.
    assert composite_metric(25.7, 116_600_000, 233_200_000, 3_000_000, 6_000_000) == pytest.approx(25.7 + 0.5 * 0.5 * 2)
    assert composite_metric(10, 1, 3, 1, 4, alpha=2) == pytest.approx(10 + 2 * 0.25 * 3)


def test_more_new_data_weighs_accuracy_more():
    small, large = Architecture(0, 1, 1, 1, 1, 0), Architecture(0, 5, 1, 1, 1, 0)
    accuracies = {small: 20.0, large: 20.2}

    def chosen(previous: int) -> Architecture:
        count = {small: 10, large: 20}.__getitem__
        return rank_candidates(accuracies, count, large, previous, 1000, alpha=0.5)[0].architecture

    assert chosen(previous=900) == small  # 20 + 0.5 · 0.9 · 2 > 20.2 + 0.5 · 0.9
    assert chosen(previous=100) == large


def test_of_equals_the_smaller_is_taken():
    rows = rank_candidates(
        {Architecture(0, 2, 1, 1, 1, 0): 5.0, Architecture(0, 1, 1, 1, 1, 0): 5.0},
        lambda a: a.image_blocks,
        Architecture(0, 2, 1, 1, 1, 0),
        1,
        2,
        alpha=0.0,
    )
    assert [row.parameters for row in rows] == [1, 2]
    assert rows[0].metric == rows[1].metric == 5.0
