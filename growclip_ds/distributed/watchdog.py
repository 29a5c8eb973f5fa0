"""A watchdog that ends all ranks when one fails or hangs, and reports the first error, not those that follow from it.

A thread on every rank polls the rendezvous key-value store once per second. A rank that waits in a collective for one
that is gone need not be woken up: its thread ends the process.

Only time in which the process runs counts, so a run that is suspended as a whole (Slurm's `scontrol suspend`, gang
scheduling, Ctrl-Z) does not count as hung.
"""

from __future__ import annotations

import datetime
import faulthandler
import json
import os
import secrets
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import torch.distributed as dist

from growclip_ds import distributed
from growclip_ds.errors import InputError

PERIOD = 1.0  # seconds between polls
# Seconds before exiting: rank 0, which may hold the store, gives the others time to read why the run ends; a rank that
# raises OtherRankError gives the failed rank time to report its own error.
LINGER = 3 * PERIOD
SILENCE = 10.0  # seconds without a heartbeat after which a rank of a hung run is reported as not answering
FAILED, INPUT_ERROR = 1, 2  # exit codes: of any error, and of one that the user can fix
_FAILURE = "growclip/failure"


class Watchdog:
    """The watchdog of a single-process run, and the interface of `StoreWatchdog`.

    Args:
        program: the program's name, for error messages.
    """

    def __init__(self, program: str = "train.py") -> None:
        self._program = program

    def reached(self, place: str) -> None:
        """Reports this rank's position, such as `iteration 7`; an empty position suspends hang detection."""

    def fail(self, error: BaseException) -> NoReturn:
        """Ends this process at once, and with it all ranks. Only the first rank to fail prints its error."""
        self._print(error)
        _exit(_exit_code(error))

    def close(self) -> None:
        """Stops the watchdog once all ranks have finished. Collective."""

    def _print(self, error: BaseException) -> None:
        if isinstance(error, InputError):
            self._say(str(error))
        else:
            traceback.print_exception(error)
            self._say(f"rank {distributed.rank()} failed: {type(error).__name__}: {error}")

    def _say(self, text: str) -> None:
        print(f"{self._program}: error: {text}", file=sys.stderr, flush=True)


class StoreWatchdog(Watchdog):
    """The watchdog of one rank of several; created collectively, once torch.distributed is initialised.

    Args:
        hang_seconds: seconds without progress of any rank after which the run is ended.
        program: the program's name, for error messages.
    """

    def __init__(self, hang_seconds: float, program: str = "train.py") -> None:
        super().__init__(program)
        self._hang_seconds = hang_seconds
        # A connection of its own: a blocking call of another thread would delay the watchdog's.
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=datetime.timedelta(seconds=2 * SILENCE),
        )
        # A random prefix, as torchrun's agent keeps the store when it restarts the ranks, with the last start's failure
        # in it. (Not TORCHELASTIC_RESTART_COUNT, which may differ between the agents of several machines.)
        self._store = dist.PrefixStore(distributed.broadcast_object(secrets.token_hex(8)), store)
        self._rank, self._world_size = distributed.rank(), distributed.world_size()
        self._beats = self._moves = 0
        self._place = ""
        self._closed = threading.Event()
        self._awake = 0.0  # seconds that this process has run, not counting suspensions
        self._beat()
        self._answered = self._awake
        dist.barrier()  # every rank's first heartbeat is in the store
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._poll, self._watch_store)]
        for thread in self._threads:
            thread.start()

    def reached(self, place: str) -> None:
        self._moves += 1
        self._place = place

    def fail(self, error: BaseException) -> NoReturn:
        code = _exit_code(error)
        if isinstance(error, distributed.OtherRankError):
            time.sleep(LINGER)  # the polling thread ends this process once that rank has reported
        try:
            first = self._claim({"rank": self._rank, "code": code})
        except dist.DistError:  # rank 0, with the store, has ended before
            self._say(f"rank {self._rank} ends, as rank 0 has ended ({_first_line(error)})")
            _exit(code)
        if first["rank"] == self._rank:
            self._print(error)
        time.sleep(LINGER if self._rank == 0 else PERIOD)
        _exit(first["code"])

    def close(self) -> None:
        dist.barrier()  # the store ends with rank 0
        self._closed.set()
        for thread in self._threads:
            thread.join()

    def _poll(self) -> None:
        last: dict[int, tuple[str, float]] = {}  # each rank's last heartbeat and when it was first seen
        moved, since = None, self._awake
        while not self._closed.wait(PERIOD):
            try:
                if self._store.check([_FAILURE]):
                    self._follow(json.loads(self._store.get(_FAILURE)))
                self._beat()
                self._answered = self._awake
                if self._rank != 0:
                    continue
                heartbeats = [self._store.get(_heartbeat(rank)).decode() for rank in range(self._world_size)]
            except dist.DistError as error:
                self._lose_store(error)
                continue
            now = self._awake
            for rank, heartbeat in enumerate(heartbeats):
                if last.get(rank, ("", 0.0))[0] != heartbeat:
                    last[rank] = heartbeat, now
            places = [heartbeat.split(" ", 2)[1:] for heartbeat in heartbeats]
            if places != moved or not all(place for _, place in places):
                moved, since = places, now
            silence = {rank: now - seen for rank, (_, seen) in last.items()}
            if now - since > self._hang_seconds or max(silence.values()) > max(self._hang_seconds, SILENCE):
                self._report_hang(places, [rank for rank, seconds in silence.items() if seconds > SILENCE])

    def _watch_store(self) -> None:
        """Measures the running time, and ends this process if rank 0, with the store, is stopped without having ended:
        calls to the store then block for ever.
        """
        before = time.monotonic()
        while not self._closed.wait(PERIOD):
            now = time.monotonic()
            self._awake += min(now - before, 2 * PERIOD)  # more than that: the process was suspended
            before = now
            if self._awake - self._answered > self._hang_seconds + SILENCE:
                self._say(f"rank {self._rank} ends, as rank 0 does not answer")
                _exit(FAILED)

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(_heartbeat(self._rank), f"{self._beats} {self._moves} {self._place}")

    def _claim(self, failure: dict[str, Any]) -> dict[str, Any]:
        """Registers a failure unless there is one already; returns the first one."""
        return json.loads(self._store.compare_set(_FAILURE, "", json.dumps(failure)))

    def _report_hang(self, places: list[list[str]], silent: list[int]) -> NoReturn:
        moves = [int(count) for count, _ in places]
        behind = [rank for rank, count in enumerate(moves) if count < max(moves)]
        named = silent or behind
        failure = {"rank": self._rank, "code": FAILED, "hung": named or list(range(self._world_size))}
        if self._claim(failure) == failure:
            ranks = " and ".join(f"rank {rank}, last seen at {places[rank][1] or 'no iteration'}," for rank in named)
            state = "does not answer" if silent else "is behind the others"
            who = f"{ranks} {state}" if named else f"all ranks are at {places[0][1]}; see below where each one waits"
            minutes = self._hang_seconds / 60
            self._say(f"no rank has made progress for {minutes:g} minutes (health.hang_minutes): {who}; the run ends")
        self._follow(failure)

    def _follow(self, failure: dict[str, Any]) -> NoReturn:
        time.sleep(PERIOD)  # so that the failed rank's error is printed first
        if self._rank in failure.get("hung", []):
            self._say(f"rank {self._rank} hangs here:")
            faulthandler.dump_traceback(all_threads=True)
        time.sleep(LINGER - PERIOD if self._rank == 0 else 0)
        _exit(failure["code"])

    def _lose_store(self, error: Exception) -> None:
        """Ends this process because rank 0 is gone, unless the run has finished."""
        if not self._closed.wait(2 * PERIOD):
            self._say(f"rank {self._rank} ends, as rank 0 has ended or does not answer ({_first_line(error)})")
            _exit(FAILED)


def start_watchdog(hang_seconds: float, program: str = "train.py") -> Watchdog:
    """Starts this rank's watchdog, after torch.distributed is initialised. Collective. Arguments as `StoreWatchdog`."""
    return StoreWatchdog(hang_seconds, program) if distributed.world_size() > 1 else Watchdog(program)


def _heartbeat(rank: int) -> str:
    return f"growclip/heartbeat/{rank}"


def _exit_code(error: BaseException) -> int:
    return INPUT_ERROR if isinstance(error, InputError) else FAILED


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without clean-up: other threads may wait for ranks that are gone
