"""A run's summary fits its columns, with many sets or none, in any encoding."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from growclip_ds import Architecture
from growclip_ds.monitor import StepSummary, print_summary
from tests.monitor.runs import candidates
from tests.monitor.test_progress import Terminal


def summary(step: int, sets: list[str]) -> StepSummary:
    return StepSummary(
        step=step,
        samples=3_000_000 * step,
        architecture=Architecture(10, 20, 10, 10, 10, 10),
        parameters=188_520_000,
        seconds=3_723.0 * step,
        before={} if step == 1 else dict.fromkeys(sets, 20.0),
        after=dict.fromkeys(sets, 30.06) | dict.fromkeys(sets[7:], 0.0),
        averaged=sets[:7],
        candidates=() if step == 1 else candidates(),
        selection_set=None if step == 1 else "scenes_selection",
    )


@pytest.mark.parametrize(
    "sets", [["scenes_objects", "a_set_with_quite_a_long_name_of_its_own"], [f"set_{i}" for i in range(9)]]
)
def test_the_summary_fits_100_columns(sets: list[str], tmp_path: Path):
    stream = io.StringIO()
    print_summary([summary(step, sets) for step in (1, 2, 3, 4)], tmp_path, stream)
    lines = stream.getvalue().splitlines()
    assert max(len(line) for line in lines if "tensorboard" not in line) <= 100
    text = " ".join(stream.getvalue().split())
    assert "4 12,000,000 (10, 20, 10, 10, 10, 10) 188.52 M 20.0 → 30.1" in text
    assert "4:08:12" in text
    assert "– → 30.1" in text
    assert "2 1 of 64 (0, 2, 1, 1, 2, 0) b^I h^T 1.23 M 41.23 41.99" in text
    if len(sets) > 2:
        assert "mean of 7 sets" in text  # those of classification
        assert "set_8 0.0 0.0 0.0 0.0" in text
        assert "mean of 7 30.1 30.1 30.1 30.1" in text


def test_a_narrow_terminal_cuts_nothing_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    print_summary([summary(step, ["objects", "pairs"]) for step in (1, 2)], tmp_path, terminal := Terminal())
    lines = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue()).splitlines()
    assert "    2   6,000,000   (10, 20, 10, 10, 10, 10)     188.52 M   20.0 → 30.1   20.0 → 30.1   2:04:06" in lines
    assert "    2   1 of 64   (0, 2, 1, 1, 2, 0)   b^I h^T           1.23 M      41.23    41.99" in lines
    assert " convolutions, b^I h^I image and b^T h^T text blocks and" in lines  # texts are as narrow as the terminal
    assert "…" not in terminal.getvalue()
    assert [line for line in lines if line != line.rstrip()] == []


def test_a_summary_in_ascii(tmp_path: Path):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_summary([summary(step, ["scenes"]) for step in (1, 2)], tmp_path, stream)
    assert b"20.0 ? 30.1" in stream.buffer.getvalue()


def test_a_summary_without_evaluation_or_steps(tmp_path: Path):
    stream = io.StringIO()
    print_summary([summary(1, [])], tmp_path, stream)
    print_summary([], tmp_path, stream)
    assert "188.52 M   1:02:03" in stream.getvalue()
    assert "accuracy in percent" not in stream.getvalue()
