"""The watch over the ranks at the level of its store; whole runs that fail are in tests/faults."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
import torch.distributed as dist

from growclip_ds.distributed import OtherRankError, watchdog
from growclip_ds.distributed.watchdog import StoreWatchdog
from growclip_ds.errors import InputError
from tests.ranks import Ranks


class Ended(BaseException):
    pass


def test_a_failure_ends_with_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `torchrun --max-restarts` the ranks find the store of the last start."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setattr(dist, "barrier", lambda: None)
    monkeypatch.setattr(watchdog, "PERIOD", 0.05)
    monkeypatch.setattr(watchdog, "LINGER", 0.2)
    with mock.patch.object(watchdog, "_exit", side_effect=Ended) as ended:
        first = StoreWatchdog(60.0)
        with pytest.raises(Ended):
            first.fail(InputError("a reason"))
        assert ended.called
    with mock.patch.object(watchdog, "_exit") as ended:
        first.close()
        ended.reset_mock()
        again = StoreWatchdog(60.0)
        time.sleep(0.5)
        again.close()
        assert not ended.called


@pytest.mark.parametrize("speaks", [True, False])
def test_what_another_rank_has_raised_is_its_own_to_say(
    speaks: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both know of it at the same moment, but that rank alone has the traceback, and the right exit code."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setattr(dist, "barrier", lambda: None)
    monkeypatch.setattr(watchdog, "LINGER", 0.2)
    with mock.patch.object(watchdog, "_exit", side_effect=Ended) as ended:
        watch = StoreWatchdog(60.0)
        if speaks:
            threading.Timer(0.05, watch._claim, [{"rank": 3, "code": 2}]).start()
        with pytest.raises(Ended):
            watch.fail(OtherRankError("rank 3: OSError: [Errno 28] No space left on device"))
        watch.close()
        assert ended.call_args == mock.call(2 if speaks else 1)
    assert ("No space left on device" in capsys.readouterr().err) == (not speaks)


def reach_iterations_for_five_seconds(arguments: list[str]) -> int:
    watchdog.PERIOD, watchdog.SILENCE, watchdog.LINGER = 0.2, 1.0, 0.4
    dist.init_process_group("gloo")
    watch = watchdog.start_watchdog(2.0)
    print(f"rank {dist.get_rank()} is watched", flush=True)
    end = time.monotonic() + 5.0
    while time.monotonic() < end:
        watch.reached("an iteration")
        time.sleep(0.05)
    watch.close()
    return 0


def test_ranks_that_were_suspended_together_go_on(tmp_path: Path) -> None:
    """As Slurm suspends a job, for longer than a hang may last."""
    ranks = Ranks([], tmp_path / "log", program=reach_iterations_for_five_seconds)
    try:
        for rank in range(2):
            ranks.wait_for(f"rank {rank} is watched")
        for number, seconds in ((signal.SIGSTOP, 4.0), (signal.SIGCONT, 0.0)):
            for rank in range(2):
                ranks.send(number, rank)
            time.sleep(seconds)
        assert ranks.wait(30) == [0, 0], ranks.output
    finally:
        ranks.kill()
