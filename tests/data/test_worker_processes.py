"""What workers and trainer share survives the death of any of them."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from growclip_ds.data import worker_processes
from growclip_ds.data.stream import _prepare_worker
from growclip_ds.data.worker_processes import Flag, WorkerContext
from growclip_ds.signals import kept_from_children


def look_on(flag: Flag, pipe: multiprocessing.connection.Connection) -> None:
    pipe.send("looking")
    while not flag.is_set():
        pass
    pipe.send("seen")


@pytest.fixture
def context() -> WorkerContext:
    return WorkerContext(preload=["growclip_ds.data.worker_processes"])


def test_processors_that_are_a_ranks_own_are_not_divided_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.delenv("GROWCLIP_CPUS_PER_RANK", raising=False)
    monkeypatch.setattr(worker_processes, "processors", lambda: 16)
    assert worker_processes.share_of_processors() == 2
    monkeypatch.setenv("GROWCLIP_CPUS_PER_RANK", "16")
    assert worker_processes.share_of_processors() == 16


def test_a_flag_is_seen_by_processes(context: WorkerContext) -> None:
    ours, theirs = context.Pipe()
    flag = context.Event()
    process = context.Process(target=look_on, args=(flag, theirs), daemon=True)
    process.start()
    assert ours.recv() == "looking"
    assert not ours.poll(0.1)
    flag.set()
    assert ours.poll(20)
    assert ours.recv() == "seen"
    process.join()


def wait_for_a_shard(end: Flag, pipe: multiprocessing.connection.Connection) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most // 2, most))
    _prepare_worker(end, 0)
    pipe.send("waiting")
    pipe.send((resource.getrlimit(resource.RLIMIT_NOFILE)[0], most))
    time.sleep(300)


def test_a_worker_that_waits_for_a_shard_ends_when_its_trainer_does(context: WorkerContext) -> None:
    """Which would wait for it: the signal that ends other processes is kept from workers."""
    ours, theirs = context.Pipe()
    with kept_from_children():
        process = context.Process(target=wait_for_a_shard, args=(context.end, theirs), daemon=True)
        process.start()
    assert ours.recv() == "waiting"
    allowed, most = ours.recv()
    assert allowed == min(most, max(most // 2, 2**16))  # files: it reads all shards
    context.Event().set()
    process.join(20)
    code = process.exitcode
    process.kill()
    assert code == 0


def test_a_process_that_is_killed_while_it_looks_locks_nobody_out(context: WorkerContext) -> None:
    flag = context.Event()
    for _ in range(6):  # an event of multiprocessing's is left locked about every second time
        ours, theirs = context.Pipe()
        process = context.Process(target=look_on, args=(flag, theirs), daemon=True)
        process.start()
        assert ours.recv() == "looking"
        time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        look = threading.Thread(target=flag.is_set, daemon=True)
        look.start()
        look.join(5)
        assert not look.is_alive()


def run_alone(body: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a process group of its own; returns once its processes have ended as well."""
    head = (
        "import os, signal, time\n"
        "from growclip_ds.data.worker_processes import map_in_processes\n"
        "from growclip_ds.signals import StopRequest\n"
    )
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(body)],
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=60,
        check=False,
    )


def test_a_request_to_stop_does_not_reach_processes() -> None:
    ended = run_alone("""
        request = StopRequest()
        request.install()
        done = 0
        for _ in map_in_processes(time.sleep, [0.01] * 6, 2):
            if not request.requested:
                os.killpg(0, signal.SIGTERM)
                os.killpg(0, signal.SIGUSR1)
            done += 1
        print(done, request.requested)
    """)
    assert (ended.stdout, ended.stderr) == ("6 True\n", "")


def test_processes_end_quietly_when_interrupted() -> None:
    ended = run_alone("""
        def interrupt(*_):
            time.sleep(0.3)  # the processes would be quicker
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupt)
        try:
            for _ in map_in_processes(time.sleep, [0.01, 300], 2):
                os.killpg(0, signal.SIGINT)
        except KeyboardInterrupt:
            print("interrupted")
    """)
    assert (ended.stdout, ended.stderr) == ("interrupted\n", "")


def test_processes_end_when_their_parent_is_killed() -> None:
    ended = run_alone("""
        for _ in map_in_processes(time.sleep, [0.01, 300, 300], 2):
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert ended.returncode == -signal.SIGKILL
