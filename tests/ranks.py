"""A program on several ranks, processes that a test may kill, stop or spoil, without a launcher's start-up time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.group import PRELOAD

LIMIT = 120.0  # seconds that a run may take


def free_port() -> int:
    """A port of this machine that nothing listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def train(arguments: list[str]) -> int:
    import train

    return train.main(arguments)


class Ranks:
    """A start of a program on two ranks.

    Args:
        arguments: of the program.
        log: where what the ranks print goes, all of them to the end of the same file.
        spoil: called on every rank, with its number, before the program; importable by its module path.
        size: ranks.
        program: what is called with the arguments and returns the exit code; importable, too.
    """

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        spoil: Callable[[int], None] | None = None,
        size: int = 2,
        program: Callable[[list[str]], int] = train,
    ) -> None:
        self.log = log
        log.write_bytes(b"")
        port = free_port()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.processes = [
            context.Process(target=_run_rank, args=(program, arguments, str(log), rank, size, port, spoil))
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def send(self, number: int, rank: int) -> None:
        """Sends a signal to one rank, if it is still there."""
        if self.processes[rank].is_alive():
            os.kill(self.processes[rank].pid, number)

    def kill(self) -> None:
        """Kills all ranks at once."""
        for rank in range(len(self.processes)):
            self.send(signal.SIGKILL, rank)
        self.wait()

    def wait(self, limit: float = LIMIT) -> list[int]:
        """The exit codes, once all ranks have ended; those that have not in time are killed, with -9 for code."""
        end = time.monotonic() + limit
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    def wait_for(self, text: str, limit: float = LIMIT) -> None:
        """Waits until the ranks have printed a text."""
        end = time.monotonic() + limit
        while text not in self.output:
            assert time.monotonic() < end, f"{text!r} did not come:\n{self.output}"
            assert any(process.is_alive() for process in self.processes), f"ended without {text!r}:\n{self.output}"
            time.sleep(0.02)

    @property
    def output(self) -> str:
        """All that the ranks have printed so far."""
        return self.log.read_text(errors="replace")


def _run_rank(
    program: Callable[[list[str]], int],
    arguments: list[str],
    log: str,
    rank: int,
    size: int,
    port: int,
    spoil: Callable[[int], None] | None,
) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    import torch

    torch.set_num_threads(1)
    if spoil is not None:
        spoil(rank)
    sys.exit(program(arguments))
