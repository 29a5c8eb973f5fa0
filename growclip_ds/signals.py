"""Stop requests, from a scheduler that reclaims the machines or by hand (`kill -USR1`, Ctrl-C)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STOPPED = 75  # exit code, EX_TEMPFAIL of sysexits.h: started again, the run resumes
_AT_ONCE = 1.0  # seconds within which a further SIGINT is the same Ctrl-C, which launchers also forward to all ranks


class Stopped(Exception):
    """The run ends early on request, without loss of work; raised on every rank."""


class StopRequest:
    """Whether this process was asked to stop. Further signals change nothing, except that a second Ctrl-C kills it.

    Attributes:
        requested: whether a request has arrived.
    """

    def __init__(self) -> None:
        self.requested = False
        self._interrupted: float | None = None

    def install(self) -> None:
        """Handles SIGTERM, SIGUSR1 and SIGINT as requests; for a program's main thread, never for a library."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True  # and little else: a signal may interrupt any code
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
            if os.environ.get("RANK", "0") == "0":
                os.write(2, b"\nStopping after this iteration, with a checkpoint; press Ctrl-C again to end at once.\n")
        elif now - self._interrupted > _AT_ONCE:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def kept_from_children() -> Iterator[None]:
    """Blocks the signals in processes started inside, since schedulers and launchers send them to all processes.

    Signals to this process are meanwhile delivered to another of its threads, or else at the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()  # also a child; unblocks SIGTERM and SIGINT, which it ignores
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
