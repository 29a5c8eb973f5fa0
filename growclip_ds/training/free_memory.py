"""Main memory available to this process: the machine's free memory, or less if a cgroup limits it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil


def available_memory() -> int:
    """Bytes of available memory, within the limits of Slurm's `--mem` and of containers, which the machine's own figure
    ignores."""
    return min([psutil.virtual_memory().available, *left_by_groups(Path("/"))])


def left_by_groups(root: Path) -> Iterator[int]:
    """Yields the bytes left under the limit of each memory cgroup (v1 or v2) of this process, from its own upwards.

    Inactive file pages, which the kernel reclaims first, count as free, as in the machine's own figure.

    Args:
        root: root of the file system, which holds `proc` and `sys`.
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
            limit, usage = _text(folder / most), _text(folder / used)  # a container may only see the top's
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
