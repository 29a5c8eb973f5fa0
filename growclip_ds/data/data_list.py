"""A list of data subsets in a file, to which new ones are appended: what a run's `data.subsets` can be."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from growclip_ds.data.remote import is_remote
from growclip_ds.data.shards import Progress
from growclip_ds.data.subsets import Subset, count_subsets, read_subsets, write_subsets
from growclip_ds.errors import InputError


def add_subset(file: Path, name: str, patterns: Sequence[str], progress: Progress | None = None) -> list[Subset]:
    """Appends a subset to a list, its samples counted; makes the list if there is none.

    Args:
        file: the list.
        name: of the subset.
        patterns: of its shards, as for `Subset.shards`; or the shards, as a shell expands a glob.
        progress: told how many tars are indexed.

    Returns:
        The subsets of the list, the new one last.

    Raises:
        InputError: the list or a shard cannot be read, the name is taken, a shard is in the list already, under this
            or another path, or subsets of the list are no longer what they were.
    """
    listed = read_subsets(file) if file.exists() else []
    counted = list(count_subsets([*listed, Subset(name, one_pattern(patterns))], progress=progress))
    write_subsets(counted, file)
    return counted


def one_pattern(patterns: Sequence[str]) -> str:
    """Several patterns or paths as one; paths become absolute, so that a run may be started anywhere.

    Raises:
        InputError: they cannot be joined.
    """
    if any(map(is_remote, patterns)):
        pattern = patterns[0] if len(patterns) == 1 else _range(patterns)
        if pattern is None:
            raise InputError(f"write {', '.join(patterns)} as one brace pattern: https://host/{{00000..00099}}.tar")
        return pattern
    patterns = [_absolute(pattern) for pattern in patterns]
    if len(patterns) == 1:
        return patterns[0]
    if any(re.search(r"[{},]", pattern) for pattern in patterns):
        raise InputError(f"{', '.join(patterns)} cannot be joined: put several patterns into one pair of braces")
    return _range(patterns) or f"{{{','.join(patterns)}}}"


def _absolute(pattern: str) -> str:
    path = Path(pattern).expanduser().absolute()
    if glob.has_magic(pattern) and path.exists():  # brackets that are part of a name
        return glob.escape(str(path)) + ("/*.tar" if path.is_dir() else "")
    return str(path)


def _range(paths: Sequence[str]) -> str | None:
    """`a/{00000..00310}.tar`, where the paths are just that."""
    parts = [re.fullmatch(r"(.*?)(\d+)(\.tar)", path) for path in paths]
    if len(paths) < 2 or not all(parts):
        return None
    starts, numbers, _ = zip(*(part.groups() for part in parts if part), strict=True)
    first = int(numbers[0])
    expected = [str(first + i).zfill(len(numbers[0])) for i in range(len(numbers))]
    if len(set(starts)) > 1 or list(numbers) != expected:
        return None
    return f"{starts[0]}{{{numbers[0]}..{numbers[-1]}}}.tar"
