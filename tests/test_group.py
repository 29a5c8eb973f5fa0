"""The process groups that other tests run in."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import torch
import torch.distributed as dist

from tests.group import Group, Groups, RankError


def sum_of_ranks(offset: int) -> tuple[int, float, int]:
    total = torch.tensor([float(dist.get_rank() + offset)])
    dist.all_reduce(total)
    return dist.get_rank(), total.item(), os.getpid()


def fail_on_last_rank() -> None:
    if dist.get_rank() == dist.get_world_size() - 1:
        raise KeyError("a reason")
    dist.barrier()


def die() -> None:
    os.kill(os.getpid(), 9)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_runs_on_every_rank_in_processes_that_stay(group: Groups, size: int) -> None:
    first = group(size).run(sum_of_ranks, 1)
    second = group(size).run(sum_of_ranks, 1)
    assert first == second
    assert [r[:2] for r in first] == [(rank, size * (size + 1) / 2) for rank in range(size)]


def test_failures_are_reported_and_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.group.GRACE", 0.5)
    group = Group(2)
    try:
        with pytest.raises(RankError, match=r"(?s)rank 1 of 2.*fail_on_last_rank.*KeyError: 'a reason'"):
            group.run(fail_on_last_rank)
        assert [r[1] for r in group.run(sum_of_ranks, 0)] == [1.0, 1.0]
        with pytest.raises(RankError, match="died"):
            group.run(die)
        with pytest.raises(RankError, match="took more than 1 s"):
            group.run(time.sleep, 60, limit=1)
    finally:
        group.close()


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def test_a_call_that_is_interrupted_leaves_no_rank_busy() -> None:
    """As by the time limit of a test."""
    group = Group(1)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        group.run(sum_of_ranks, 0)
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            group.run(time.sleep, 60)
        assert group.run(sum_of_ranks, 3, limit=30)[0][1] == 3.0
    finally:
        signal.signal(signal.SIGUSR1, before)
        group.close()
