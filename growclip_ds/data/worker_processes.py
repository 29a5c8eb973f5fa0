"""How many worker processes to use, how to start them, and the flag that they share with the trainer.

Imports no torch, which processes that only index would wait for.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.context import ForkServerContext
from multiprocessing.sharedctypes import RawValue
from typing import TypeVar

from growclip_ds.signals import kept_from_children

PER_RANK = "GROWCLIP_CPUS_PER_RANK"  # set by slurm/rank.sh

S = TypeVar("S")
T = TypeVar("T")


def processors() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_of_processors() -> int:
    """Number of processors for each of this machine's ranks; at least 1."""
    if PER_RANK in os.environ:  # Slurm may have bound each rank to its own, which are not to be divided again
        return max(1, int(os.environ[PER_RANK]))
    return max(1, processors() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def map_in_processes(function: Callable[[S], T], of: Iterable[S], processes: int) -> Iterator[T]:
    """Yields a function's results in the order in which they are done, computed by spawned processes.

    The processes do not see requests to stop. If this process is interrupted, they end at once, without tracebacks.
    """
    with kept_from_children():  # its locks may start Python's resource tracker
        pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _end_with_parent)
    with pool:
        try:
            with kept_from_children():
                futures = [pool.submit(function, argument) for argument in of]
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            for process in list(pool._processes.values()):
                process.kill()
            raise


def _end_with_parent() -> None:
    """Ends this process once its parent has been killed, for which pools do not look."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # it was spawned

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


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
