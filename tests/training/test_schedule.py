from __future__ import annotations

import itertools
import math

import pytest

from growclip_ds.training.schedule import learning_rate


def test_linear_warm_up_then_cosine_to_zero():
    rates = [learning_rate(i, 100, 0.01, 4) for i in range(101)]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert rates[4] == pytest.approx(0.01)
    assert rates[52] == pytest.approx(0.005)  # half of the 96 iterations behind the warm-up
    assert rates[100] == pytest.approx(0)
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))


def test_warm_up_is_a_tenth_of_a_short_phase():
    assert max(range(50), key=lambda i: learning_rate(i, 50, 1.0, 4000)) in (4, 5)
    assert learning_rate(0, 50, 1.0, 4000) == pytest.approx(0.2)


@pytest.mark.parametrize("iterations", [1, 2, 9])
def test_phases_too_short_to_warm_up(iterations):
    rates = [learning_rate(i, iterations, 1.0, 4000) for i in range(iterations)]
    assert rates[0] == 1.0
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)
