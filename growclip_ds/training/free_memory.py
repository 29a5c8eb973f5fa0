"""Main memory still available to a process: what the machine has left, or less if a cgroup limits it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil


def available_memory() -> int:
    """Bytes, by the machine and by the limits of Slurm's `--mem` and of containers, which the machine's figure is not
    told of."""
    return min([psutil.virtual_memory().available, *left_by_groups(Path("/"))])


def left_by_groups(root: Path) -> Iterator[int]:
    """What each of this process's memory control groups (cgroup v2 and v1), from its own up, leaves under its limit.

    Pages of files that the kernel would give up first count as free, as in the machine's own figure.

    Args:
        root: of the file system, with `proc` and `sys` in it.
    """
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, most, used, cache = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, most, used = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            limit, usage = _text(folder / most), _text(folder / used)  # in a container, only the top's may be seen
            if limit is not None and limit.isdecimal() and usage is not None:
                yield max(0, int(limit) - int(usage) + _statistic(folder / "memory.stat", cache))
            if folder == top:
                break


def _statistic(file: Path, name: str) -> int:
    values = dict(line.split(maxsplit=1) for line in (_text(file) or "").splitlines())
    return int(values.get(name, 0))


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return None
