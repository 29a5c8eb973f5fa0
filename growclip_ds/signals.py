"""Requests to stop: from a scheduler that wants the machines back, or by hand (`kill -USR1`, Ctrl-C)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STOPPED = 75  # exit code, sysexits.h's EX_TEMPFAIL: started again, the run goes on
_AT_ONCE = 1.0  # seconds in which a further SIGINT is the same Ctrl-C, which launchers pass on to all ranks once more


class Stopped(Exception):
    """The run ends early as it was asked to, with nothing lost; on every rank."""


class StopRequest:
    """Whether this process was asked to stop. Further signals change nothing, but a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.requested = False
        self._interrupted: float | None = None

    def install(self) -> None:
        """Takes SIGTERM, SIGUSR1 and SIGINT as requests; for a program's main thread, never for a library."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True  # and little else: the interrupted code may be anywhere
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
            if os.environ.get("RANK", "0") == "0":
                os.write(2, b"\nStops after this iteration, with a checkpoint; Ctrl-C once more ends it at once.\n")
        elif now - self._interrupted > _AT_ONCE:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def kept_from_children() -> Iterator[None]:
    """Processes started inside never see the signals: schedulers and launchers send them to all processes there are.

    What comes meanwhile for this process is delivered at the end, or to another of its threads.
    """
    resource_tracker.ensure_running()  # if it started inside, it would let SIGTERM through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
