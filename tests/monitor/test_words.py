"""Durations are shown in minutes and seconds, and in hours where there are any."""

from __future__ import annotations

import pytest

from growclip_ds.monitor.words import duration


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (59.6, "1:00"), (723, "12:03"), (3723, "1:02:03")])
def test_durations(seconds: float, shown: str):
    assert duration(seconds) == shown
