"""The watch over the ranks at the level of its store; whole runs that fail are in tests/faults."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from unittest import mock

import pytest
import torch.distributed as dist

from growclip_ds.distributed import OtherRankError, watchdog
from growclip_ds.distributed.watchdog import StoreWatchdog
from growclip_ds.errors import InputError
from tests.script_ranks import start_ranks


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


RANK = """
import os, sys, time
import torch.distributed as dist
from growclip_ds.distributed import OtherRankError, watchdog

watchdog.PERIOD, watchdog.SILENCE, watchdog.LINGER = 0.2, 1.0, 0.4
dist.init_process_group("gloo")
watch = watchdog.start_watchdog(2.0)
print("watched", flush=True)
end = time.monotonic() + 5.0
while time.monotonic() < end:
    watch.reached("an iteration")
    time.sleep(0.05)
watch.close()
"""


def test_ranks_that_were_suspended_together_go_on() -> None:
    """As Slurm suspends a job, for longer than a hang may last."""
    ranks = start_ranks(RANK, stdout=subprocess.PIPE)
    try:
        for rank in ranks:
            assert rank.stdout is not None
            assert rank.stdout.readline() == "watched\n"
        for number, seconds in ((signal.SIGSTOP, 4.0), (signal.SIGCONT, 0.0)):
            for rank in ranks:
                rank.send_signal(number)
            time.sleep(seconds)
        assert [rank.wait(30) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
