from __future__ import annotations

from pathlib import Path

import psutil

from growclip_ds.training import free_memory
from growclip_ds.training.free_memory import available_memory, left_by_groups


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_a_version_2_group_and_those_above_it(tmp_path: Path) -> None:
    """As Slurm makes them: the job has a limit, the task has none of its own."""
    write(tmp_path / "proc/self", cgroup="0::/slurm/job_1/task_0")
    top = tmp_path / "sys/fs/cgroup"
    write(top / "slurm/job_1/task_0", memory__max="max", memory__current=700)
    write(top / "slurm/job_1", memory__max=1000, memory__current=800, memory__stat="anon 500\ninactive_file 100")
    write(top / "slurm", memory__max=5000, memory__current=4900)
    write(tmp_path / "sys/fs", memory__max=1, memory__current=1)  # no group
    assert list(left_by_groups(tmp_path)) == [300, 100]


def test_a_version_1_group_in_a_container(tmp_path: Path) -> None:
    """Which sees its own group as the top, though /proc names it as the machine does."""
    write(tmp_path / "proc/self", cgroup="12:cpu,cpuacct:/docker/ab\n7:memory:/docker/ab\n0::/docker/ab")
    top = tmp_path / "sys/fs/cgroup/memory"
    stat = "inactive_file 1\ntotal_inactive_file 30"
    write(top, memory__limit_in_bytes=500, memory__usage_in_bytes=600, memory__stat=stat)
    assert list(left_by_groups(tmp_path)) == [0]
    write(top, memory__usage_in_bytes=100)
    assert list(left_by_groups(tmp_path)) == [430]


def test_without_groups_it_is_the_machines(tmp_path: Path, monkeypatch) -> None:
    assert list(left_by_groups(tmp_path)) == []
    machine = psutil.virtual_memory().available
    monkeypatch.setattr(free_memory, "left_by_groups", lambda root: iter([7, 2**62]))
    assert available_memory() == 7
    monkeypatch.setattr(free_memory, "left_by_groups", lambda root: iter([]))
    assert abs(available_memory() - machine) < machine / 2
