"""How many worker processes to use, how to start them, and the flag that they share with the trainer."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from multiprocessing.context import ForkServerContext
from multiprocessing.sharedctypes import RawValue


def processors() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Flag:
    """An event to poll, without a lock.

    A process that is killed while it checks multiprocessing's own event may leave it locked, and the next one to check
    it would wait forever.
    """

    def __init__(self) -> None:
        self._is_set = RawValue(ctypes.c_bool, False)

    def is_set(self) -> bool:
        return self._is_set.value

    def set(self) -> None:
        self._is_set.value = True


class WorkerContext(ForkServerContext):
    """Starts workers from a fork server: threads of the trainer (collectives, tokenizers) may hold locks during a fork.

    Args:
        preload: modules that the server imports, once for all workers.

    Attributes:
        end: the event of this context by which torch's data loader tells workers to end.
    """

    def __init__(self, preload: list[str]) -> None:
        super().__init__()
        self.end = Flag()
        multiprocessing.get_context("forkserver").set_forkserver_preload(preload)

    def Event(self) -> Flag:  # type: ignore[override]
        return self.end
