"""Long-lived gloo process groups for tests: importing torch and starting DeepSpeed is paid once, not per test."""

from __future__ import annotations

import contextlib
import datetime
import gc
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

# What takes long to import: a server that has done so once forks the ranks of all groups.
PRELOAD = [
    "growclip_ds.pipeline.pipeline",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage3",
]
LIMIT = 180.0  # seconds that a call may take
GRACE = 5.0  # seconds that the other ranks have after one has failed, before they are ended


class RankError(AssertionError):
    """A rank raised, died or took too long; the message holds its traceback or the end of its output."""


class Group:
    """`size` processes in one gloo process group, each waiting for functions to run.

    A call that fails ends the processes, as they may be stuck in a collective; the next call starts new ones.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._ranks: list[tuple[multiprocessing.Process, Connection]] = []
        self._folder: tempfile.TemporaryDirectory | None = None

    def run(self, function: Callable[..., Any], *args: Any, limit: float = LIMIT) -> list[Any]:
        """Calls `function(*args)` on every rank and returns what each returned, by rank.

        Args:
            function: importable by its module path (no lambda, no closure).
            args: anything that pickles, as must the results.
            limit: seconds until the call counts as hung.

        Raises:
            RankError: some rank raised, died, or did not end in time.
        """
        if not self._ranks:
            self._start()
        try:
            return self._call(function, args, limit)
        except BaseException:  # one of ours, a test's time limit, Ctrl-C: the ranks may still be busy
            self.close()
            raise

    def close(self) -> None:
        """Ends the processes."""
        for process, connection in self._ranks:
            connection.close()
            process.kill()
            process.join()
        self._ranks = []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._folder = tempfile.TemporaryDirectory(prefix=f"group-of-{self.size}-")
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, self.size, self._folder.name), daemon=True)
            process.start()
            theirs.close()
            self._ranks.append((process, ours))

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...], limit: float) -> list[Any]:
        call = pickle.dumps((function, args))
        for _, connection in self._ranks:
            connection.send_bytes(call)
        results: dict[int, Any] = {}
        failures: dict[int, str] = {}
        end = time.monotonic() + limit
        while len(results) + len(failures) < self.size:
            pending = {c: r for r, (_, c) in enumerate(self._ranks) if r not in results and r not in failures}
            ready = wait(list(pending), timeout=max(0.0, end - time.monotonic()))
            for connection in ready:
                rank = pending[connection]
                try:
                    succeeded, value = pickle.loads(connection.recv_bytes())
                except EOFError:
                    succeeded, value = False, "died"
                (results if succeeded else failures)[rank] = value
            if not ready:
                if not failures:
                    failures = dict.fromkeys(pending.values(), f"took more than {limit:.0f} s")
                break
            if failures:
                end = min(end, time.monotonic() + GRACE)
        if failures:
            raise RankError("\n".join(self._report(rank, failures[rank]) for rank in sorted(failures)))
        return [results[rank] for rank in range(self.size)]

    def _report(self, rank: int, failure: str) -> str:
        assert self._folder is not None
        with contextlib.suppress(FileNotFoundError):
            output = (Path(self._folder.name) / f"rank{rank}.log").read_text(errors="replace")
            failure += f"\n--- end of its output:\n{output[-2000:]}" if output else ""
        return f"rank {rank} of {self.size}: {failure}"


class Groups:
    """One group per number of ranks, started when first asked for."""

    def __init__(self) -> None:
        self._groups: dict[int, Group] = {}

    def __call__(self, size: int) -> Group:
        return self._groups.setdefault(size, Group(size))

    def close(self) -> None:
        for group in self._groups.values():
            group.close()


def _serve(connection: Connection, rank: int, size: int, folder: str) -> None:
    log = os.open(f"{folder}/rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "GLOO_SOCKET_IFNAME": "lo"}

    import torch

    gc.freeze()  # what is imported stays: engines that are torn down need not search it for garbage
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        store=torch.distributed.FileStore(f"{folder}/store", size),
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=2 * LIMIT),
    )
    with contextlib.suppress(EOFError, OSError):  # the test session is over
        while True:
            function, args = pickle.loads(connection.recv_bytes())
            try:
                outcome = (True, function(*args))
                message = pickle.dumps(outcome)
            except BaseException:
                message = pickle.dumps((False, traceback.format_exc()))
            connection.send_bytes(message)
