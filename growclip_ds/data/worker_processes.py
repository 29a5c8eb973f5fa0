"""How many worker processes to use, how they are started, and what they share with the training process."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from multiprocessing.context import ForkServerContext
from multiprocessing.sharedctypes import RawValue


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Flag:
    """An event to be polled. A process that is killed while it looks leaves it as it was: multiprocessing's own it may
    leave locked, and whoever looks next waits forever.
    """

    def __init__(self) -> None:
        self._is_set = RawValue(ctypes.c_bool, False)

    def is_set(self) -> bool:
        return self._is_set.value

    def set(self) -> None:
        self._is_set.value = True


class WorkerContext(ForkServerContext):
    """Starts workers from a server, not forked from the trainer, whose threads (collectives, tokenizers) may hold locks
    at that moment; torch's data loader tells them by an event of this context to end.

    Args:
        preload: modules that the server imports, once for all workers.

    Attributes:
        end: that event.
    """

    def __init__(self, preload: list[str]) -> None:
        super().__init__()
        self.end = Flag()
        multiprocessing.get_context("forkserver").set_forkserver_preload(preload)

    def Event(self) -> Flag:  # type: ignore[override]
        return self.end
