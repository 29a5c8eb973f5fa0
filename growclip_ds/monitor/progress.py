"""Progress of a phase and its remaining time: a live line on a terminal, plain lines at intervals elsewhere."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from growclip_ds.config.config import Config
from growclip_ds.growth.phases import Phase, phase_epochs
from growclip_ds.monitor.reports import Progress
from growclip_ds.monitor.starvation import NOTABLE_WAIT
from growclip_ds.monitor.words import duration

PLAIN_INTERVAL = 5.0  # seconds from one plain line to the next
SMOOTHING = 0.3  # weight of the newest report in the time an iteration takes
BAR_WIDTH = 16

PhasePlan = Mapping[tuple[int, Phase], int]
"""Iterations of every phase of the run, in order, by growth step and phase."""


def plan_phases(config: Config, samples: Sequence[int]) -> PhasePlan:
    """How long every phase of a run is.

    Args:
        samples: pairs that have arrived by each growth step, from the first.
    """
    plan = {}
    for step, arrived in enumerate(samples[: config.num_growth_steps], start=1):
        trained_on = arrived - step * config.held_out_pairs
        for phase, epochs in phase_epochs(config, step).items():
            plan[step, phase] = math.ceil(epochs * trained_on / config.training.global_batch_size)
    return plan


class Output:
    """A stream with at most one live line at its end.

    Args:
        stream: where to; the live line is for terminals.
        clock: seconds, from any beginning.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream or sys.stdout
        self.is_live = self.stream.isatty()
        self.clock = clock
        self._last_plain = float("-inf")

    def update(self, text: str) -> None:
        """Replaces the live line; where there is none, prints the text if the last was long enough ago."""
        if self.is_live:
            columns = shutil.get_terminal_size((100, 24)).columns
            self._write(f"\r{text[: columns - 1]}\x1b[K")
        elif self.clock() - self._last_plain >= PLAIN_INTERVAL:
            self._last_plain = self.clock()
            self._write(f"{text}\n")

    def line(self, text: str) -> None:
        """Prints a line to stay, in place of the live line."""
        self._last_plain = self.clock()
        self._write(f"\r{text}\x1b[K\n" if self.is_live else f"{text}\n")

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


class PhaseProgress:
    """The progress of one phase.

    Args:
        output: where it is shown.
        step: the growth step.
        steps: total number of growth steps.
        phase: the phase.
        plan: the run's plan; what follows this phase is estimated at its pace.
        done: iterations of the phase already done.
    """

    def __init__(self, output: Output, step: int, steps: int, phase: Phase, plan: PhasePlan, done: int = 0) -> None:
        self.output = output
        self.name = f"step {step}/{steps} {phase}"
        places = list(plan)
        later = places[places.index((step, phase)) + 1 :] if (step, phase) in plan else []
        self._iterations_after = sum(plan[place] for place in later)
        self._start = self._last_time = output.clock()
        self._last_iteration, self._reports = done, 0
        self._seconds_an_iteration = 0.0

    def report(self, progress: Progress) -> None:
        """Shows where the phase stands; at its end, what it came to."""
        now = self.output.clock()
        if progress.skipped:
            scale = f"; fp16's loss scale is {progress.loss_scale:,g} now" if progress.loss_scale is not None else ""
            self.output.line(
                f"{self.name}: no update in {progress.skipped} of the iterations up to {progress.iteration}{scale}"
            )
        if progress.iteration == progress.iterations:
            self.output.line(
                f"{self.name}: {progress.iterations:,} iterations in {duration(now - self._start)}, "
                f"loss {progress.loss:.3f}, {progress.samples_per_second:,.0f} samples/s"
            )
            return
        self._measure(progress.iteration, now)
        self.output.update(self._line(progress))

    def _measure(self, iteration: int, now: float) -> None:
        """Keeps the time that an iteration takes; the first report, which has the start-up in it, until the second."""
        pace = (now - self._last_time) / max(1, iteration - self._last_iteration)
        self._reports += 1
        if self._reports <= 2:
            self._seconds_an_iteration = pace
        else:
            self._seconds_an_iteration += SMOOTHING * (pace - self._seconds_an_iteration)
        self._last_iteration, self._last_time = iteration, now

    def _line(self, progress: Progress) -> str:
        left = (progress.iterations - progress.iteration) * self._seconds_an_iteration
        parts = [
            self.name,
            f"{progress.iteration:,}/{progress.iterations:,}",
            f"loss {progress.loss:.3f}",
            f"{progress.samples_per_second:,.0f} samples/s",
            f"{duration(left)} left",
        ]
        if self.output.is_live:
            parts[1] = f"{_bar(progress.iteration / progress.iterations)} {parts[1]}"
        if self._iterations_after:
            parts[-1] += f", run about {duration(left + self._iterations_after * self._seconds_an_iteration)}"
        if progress.data_wait_share > NOTABLE_WAIT:
            parts.append(f"waits for data {progress.data_wait_share:.0%}")
        return "  ".join(parts)


def _bar(share: float) -> str:
    full = int(share * BAR_WIDTH)
    return f"[{'#' * full}{'.' * (BAR_WIDTH - full)}]"
