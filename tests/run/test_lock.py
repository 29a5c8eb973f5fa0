"""A run is started once at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import pytest

from growclip_ds.errors import InputError
from growclip_ds.pipeline.pipeline import GrowthPipeline
from growclip_ds.run import lock
from growclip_ds.run.lock import RunLock
from growclip_ds.signals import Stopped
from tests.group import Groups


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "WAIT", 0.0)
    monkeypatch.setattr(lock, "PERIOD", 0.01)


def test_a_second_start_is_told_who_holds_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    held = RunLock(tmp_path / "run")
    with pytest.raises(InputError) as caught:
        RunLock(tmp_path / "run")
    assert f"{tmp_path}/run: this run is already being trained (" in str(caught.value)
    assert f", pid {os.getpid()}, Slurm job 4711); end that process first" in str(caught.value)
    assert "is in use (" in capsys.readouterr().out
    RunLock(tmp_path / "other").close()
    held.close()
    held.close()
    monkeypatch.delenv("SLURM_JOB_ID")
    RunLock(tmp_path / "run").close()
    assert "Slurm" not in (tmp_path / "run/train.lock").read_text()


def test_the_end_of_the_other_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "WAIT", 10.0)
    held = RunLock(tmp_path)
    start = time.monotonic()
    threading.Timer(0.2, held.close).start()
    RunLock(tmp_path).close()
    assert 0.1 < time.monotonic() - start < 5


def test_a_job_that_is_started_again_waits_longer_for_its_own_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file server may keep the lock of a node that has died."""
    monkeypatch.setattr(lock, "WAIT_FOR_SERVER", 10.0)
    monkeypatch.setenv("SLURM_JOB_ID", "471")
    held = RunLock(tmp_path)
    for job, restart in (("471", "0"), ("71", "1"), ("472", "1")):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
        with pytest.raises(InputError, match="is already being trained"):
            RunLock(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "471")
    threading.Timer(0.2, held.close).start()
    RunLock(tmp_path).close()
    assert "waiting up to 10 s for it" in capsys.readouterr().out


@pytest.mark.parametrize("error", [None, Stopped])
def test_it_ends_with_the_growth_steps(tmp_path: Path, error: type[Exception] | None) -> None:
    """Not when their object goes: a process may start the run again."""
    run = mock.Mock(**{"deepspeed.micro_batch_size": 1})
    run.folder.first_unfinished.side_effect = [None] if error is None else error
    run.folder.errors_explained = contextlib.nullcontext
    with mock.patch("growclip_ds.pipeline.pipeline.RECIPES", mock.MagicMock()):
        pipeline = GrowthPipeline(run, range(0), RunLock(tmp_path))
    with contextlib.nullcontext() if error is None else pytest.raises(error):
        pipeline.run()
    RunLock(tmp_path).close()


HOLDER = """
import sys, time
from pathlib import Path
from growclip_ds.run.lock import RunLock

lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_it_ends_with_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"pid {process.pid}"):
            RunLock(tmp_path)
        process.kill()
    RunLock(tmp_path).close()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    if number == errno.EIO:
        with pytest.raises(InputError, match=r"cannot be written: Input/output error"):
            RunLock(tmp_path)
        return
    RunLock(tmp_path)
    RunLock(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"the output folder .*file cannot be written: .*; .* use another --output-dir"
    ):
        RunLock(tmp_path / "file")


def hold_or_be_refused(folder: Path) -> str:
    try:
        with mock.patch.object(lock, "WAIT", 0.0):
            RunLock(folder).close()
    except InputError as error:
        return str(error)
    return "held"


def test_all_ranks_are_refused_alike(tmp_path: Path, group: Groups) -> None:
    held = RunLock(tmp_path)
    refused = group(2).run(hold_or_be_refused, tmp_path)
    assert refused[0] == refused[1]
    assert f"pid {os.getpid()}" in refused[0]
    held.close()
    assert group(2).run(hold_or_be_refused, tmp_path) == ["held", "held"]
