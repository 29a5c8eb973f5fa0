"""Being asked to stop: by a scheduler that wants the machines back, or by hand (`kill -USR1`)."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOPPED = 75  # exit code, sysexits.h's EX_TEMPFAIL: started again, the run goes on


class Stopped(Exception):
    """The run ends early as it was asked to, with nothing lost; on every rank."""


class StopRequest:
    """Whether this process was asked to stop. Further signals change nothing."""

    def __init__(self) -> None:
        self.requested = False

    def install(self) -> None:
        """Takes SIGTERM and SIGUSR1 as requests; called in the main thread, by a program and never by a library."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True  # and nothing else: the interrupted code may be anywhere


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
