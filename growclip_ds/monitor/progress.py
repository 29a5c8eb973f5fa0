"""Progress of a phase and its remaining time: a live line on a terminal, plain lines at intervals elsewhere.

The time of later phases, of which the models are larger by an amount not known yet, is left to `growclip plan --run`.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from growclip_ds.growth.phases import Phase
from growclip_ds.monitor.reports import Progress
from growclip_ds.monitor.starvation import NOTABLE_WAIT
from growclip_ds.monitor.words import duration

PLAIN_INTERVAL = 5.0  # seconds between plain lines, at least
SMOOTHING = 0.3  # weight of the latest report in the moving average of the time per iteration
BAR_WIDTH = 16


class Output:
    """An output stream that may end in a live line, which later output replaces.

    Args:
        stream: where to write; None: standard output. Only terminals that can erase a line get a live one.
        clock: monotonic time in seconds.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream or sys.stdout
        self.is_live = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.clock = clock
        self._last_plain = float("-inf")

    @property
    def columns(self) -> int:
        """Width available to the live line; plain lines are not limited."""
        return shutil.get_terminal_size((100, 24)).columns - 1 if self.is_live else sys.maxsize

    def update(self, text: str) -> None:
        """Replaces the live line, or prints a plain one if the last is at least `PLAIN_INTERVAL` old."""
        if self.is_live:
            self._write(f"\r{text[: self.columns]}\x1b[K")
        elif self.clock() - self._last_plain >= PLAIN_INTERVAL:
            self._last_plain = self.clock()
            self._write(f"{text}\n")

    def line(self, text: str) -> None:
        """Prints a permanent line, in place of the live line."""
        self._last_plain = self.clock()
        self._write(f"\r{text}\x1b[K\n" if self.is_live else f"{text}\n")

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


class PhaseProgress:
    """The progress of one phase.

    Args:
        output: where to show it.
        step: the growth step.
        steps: total number of growth steps.
        phase: the phase of that step.
        done: iterations of the phase already done.
    """

    def __init__(self, output: Output, step: int, steps: int, phase: Phase, done: int = 0) -> None:
        self.output = output
        self.name = f"step {step}/{steps} {phase}"
        self._start = self._last_time = output.clock()
        self._first_iteration = self._last_iteration = done
        self._reports = self._samples = 0
        self._seconds = self._seconds_an_iteration = 0.0

    def report(self, progress: Progress) -> None:
        """Shows the progress of the phase, or its totals after the last iteration."""
        now = self.output.clock()
        self._samples += progress.samples
        self._seconds += progress.seconds
        if progress.skipped:
            scale = f"; fp16's loss scale is {progress.loss_scale:,g} now" if progress.loss_scale is not None else ""
            self.output.line(
                f"{self.name}: no update in {progress.skipped} of the iterations up to {progress.iteration}{scale}"
            )
        if progress.iteration == progress.iterations:
            done = f"{progress.iterations - self._first_iteration:,}"
            if self._first_iteration:
                done += f" of {progress.iterations:,}"
            self.output.line(
                f"{self.name}: {done} iterations in {duration(now - self._start)}, "
                f"loss {progress.loss:.3f}, {self._samples / self._seconds:,.0f} samples/s"
            )
            return
        self._measure(progress.iteration, now)
        self.output.update(self._line(progress))

    def _measure(self, iteration: int, now: float) -> None:
        """Updates the time per iteration; the second report replaces the first, which includes the start-up."""
        pace = (now - self._last_time) / max(1, iteration - self._last_iteration)
        self._reports += 1
        if self._reports <= 2:
            self._seconds_an_iteration = pace
        else:
            self._seconds_an_iteration += SMOOTHING * (pace - self._seconds_an_iteration)
        self._last_iteration, self._last_time = iteration, now

    def _line(self, progress: Progress) -> str:
        """As many whole parts as fit: a number that is cut off would read as another one."""
        left = (progress.iterations - progress.iteration) * self._seconds_an_iteration
        parts = [
            f"  loss {progress.loss:.3f}",
            f"  {progress.samples_per_second:,.0f} samples/s",
            f"  {duration(left)} left",
        ]
        if progress.data_wait_share > NOTABLE_WAIT:
            parts.append(f"  waits for data {progress.data_wait_share:.0%}")
        room = self.output.columns - len(f"{self.name}  ")
        text = f"{progress.iteration:,}/{progress.iterations:,}"
        for part in parts:
            if len(text + part) > room:
                break
            text += part
        bar = f"{_bar(progress.iteration / progress.iterations)} " if self.output.is_live else ""
        return f"{self.name}  {bar if len(bar + text) <= room else ''}{text}"


def _bar(share: float) -> str:
    full = int(share * BAR_WIDTH)
    return f"[{'#' * full}{'.' * (BAR_WIDTH - full)}]"
