"""Requests to stop: a flag and nothing else, which child processes never see."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from growclip_ds.signals import STOP_SIGNALS, StopRequest


@pytest.fixture
def request_to_stop():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    request = StopRequest()
    request.install()
    yield request
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_a_request(request_to_stop: StopRequest, number: int) -> None:
    assert not request_to_stop.requested
    for _ in range(3):
        os.kill(os.getpid(), number)
        assert request_to_stop.requested


def test_children_do_not_see_it() -> None:
    """In a process of its own: in one with other threads, as libraries leave behind, those may take the signal."""
    script = """
import os, signal, subprocess, sys
from growclip_ds.signals import StopRequest, kept_from_children

child = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM); print('alive')"]
request = StopRequest()
request.install()
with kept_from_children():
    os.kill(os.getpid(), signal.SIGUSR1)
    assert not request.requested
    assert subprocess.run(child, capture_output=True, text=True, check=True).stdout == "alive\\n"
assert request.requested  # what came meanwhile
assert subprocess.run(child, capture_output=True, check=False).returncode == -signal.SIGTERM
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_second_interrupt_ends_the_process() -> None:
    """Not one that a launcher passes on at once, nor a second request of another kind."""
    script = """
import os, signal, time
from growclip_ds import signals

request = signals.StopRequest()
request.install()
for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
    os.kill(os.getpid(), number)
print(request.requested, flush=True)
signals._AT_ONCE = 0.0
time.sleep(0.01)
os.kill(os.getpid(), signal.SIGTERM)
print("goes on", flush=True)
os.kill(os.getpid(), signal.SIGINT)
print("is not reached", flush=True)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (-signal.SIGINT, "True\ngoes on\n")
    assert result.stderr.count("Stopping after this iteration, with a checkpoint") == 1
