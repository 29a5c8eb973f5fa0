"""Progress is one live line on a terminal and plain lines elsewhere, with the time that is left."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import pytest

from growclip_ds.growth.phases import Phase
from growclip_ds.monitor.progress import Output, PhaseProgress
from tests.monitor.runs import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def terminal_that_erases_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


def progress_lines(stream: io.StringIO, clock: Clock, iterations: int, seconds: float, **figures: Any) -> str:
    progress = PhaseProgress(Output(stream, clock), 2, 3, Phase.SELECTION)
    for done in range(10, iterations + 1, 10):
        clock.now += seconds * 10
        progress.report(Progress(done, iterations, **figures))
    return stream.getvalue()


def test_plain_lines_come_now_and_then():
    clock = Clock()
    lines = progress_lines(io.StringIO(), clock, iterations=1000, seconds=0.1).splitlines()
    assert len(lines) == 1 + 98 // 5 + 1
    assert lines[1] == "step 2/3 selection  60/1,000  loss 3.214  512 samples/s  1:34 left"
    assert lines[-1] == "step 2/3 selection: 1,000 iterations in 1:40, loss 3.214, 512 samples/s"


def test_a_terminal_has_one_live_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "110")
    shown = progress_lines(Terminal(), Clock(), iterations=100, seconds=0.1, data_wait_share=0.34)
    assert shown.count("\n") == 1  # at the end of the phase
    updates = shown.split("\r")[1:]
    assert len(updates) == 10
    assert updates[4].startswith("step 2/3 selection  [########........] 50/100  loss 3.214  512 samples/s  0:05 left")
    assert all(len(update.removesuffix("\x1b[K")) <= 109 for update in updates[:-1])
    assert updates[-1] == "step 2/3 selection: 100 iterations in 0:10, loss 3.214, 512 samples/s\x1b[K\n"


def test_a_terminal_that_cannot_erase_a_line_has_plain_ones(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "dumb")
    assert progress_lines(Terminal(), Clock(), iterations=100, seconds=1) == progress_lines(
        io.StringIO(), Clock(), iterations=100, seconds=1
    )


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (200, "[########........] 50/100  loss 3.214  512 samples/s  0:05 left  waits for data 34%"),
        (80, "50/100  loss 3.214  512 samples/s  0:05 left"),
        (60, "50/100  loss 3.214  512 samples/s"),
        (40, "50/100  loss 3.214"),
    ],
)
def test_a_narrow_terminal_has_whole_parts(monkeypatch: pytest.MonkeyPatch, columns: int, shown: str):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = progress_lines(Terminal(), Clock(), iterations=100, seconds=0.1, data_wait_share=0.34)
    assert lines.split("\r")[5].removesuffix("\x1b[K") == f"step 2/3 selection  {shown}"


def test_waiting_for_data_shows_where_it_matters():
    slow = progress_lines(io.StringIO(), Clock(), iterations=20, seconds=1.0, data_wait_share=0.34)
    assert slow.splitlines()[0].endswith("waits for data 34%")
    fast = progress_lines(io.StringIO(), Clock(), iterations=20, seconds=1.0, data_wait_share=0.05)
    assert "waits" not in fast


def test_updates_left_out_are_told():
    shown = progress_lines(io.StringIO(), Clock(), iterations=20, seconds=1.0, skipped=2)
    assert "step 2/3 selection: no update in 2 of the iterations up to 10\n" in shown
    fp16 = progress_lines(io.StringIO(), Clock(), iterations=20, seconds=1.0, skipped=1, loss_scale=65536.0)
    assert "no update in 1 of the iterations up to 10; fp16's loss scale is 65,536 now\n" in fp16


def test_the_first_report_does_not_count_for_long():
    clock, stream = Clock(), io.StringIO()
    progress = PhaseProgress(Output(stream, clock), 1, 1, Phase.TRAIN)
    for done, seconds in ((10, 100), (20, 10), (30, 10)):
        clock.now += seconds
        progress.report(Progress(done, 100))
    assert [line.split("  ")[-1] for line in stream.getvalue().splitlines()] == ["15:00 left", "1:20 left", "1:10 left"]


def test_the_end_tells_what_this_start_has_done():
    clock, stream = Clock(), io.StringIO()
    progress = PhaseProgress(Output(stream, clock), 2, 3, Phase.TRAIN, done=60)
    for done, seconds in ((80, 10.0), (100, 30.0)):
        clock.now += seconds
        progress.report(Progress(done, 100, samples=2000, seconds=seconds))
    *_, end = stream.getvalue().splitlines()
    assert end == "step 2/3 train: 40 of 100 iterations in 0:40, loss 3.214, 100 samples/s"
