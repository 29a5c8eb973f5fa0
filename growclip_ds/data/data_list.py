"""Maintains a file that lists data subsets in order of arrival; a run's `data.subsets` can name it."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from growclip_ds.data.remote import is_remote
from growclip_ds.data.shards import Progress, few
from growclip_ds.data.subsets import Subset, count_subsets, find_shards, read_subsets, write_subsets
from growclip_ds.errors import InputError


def add_subset(file: Path, name: str, patterns: Sequence[str], progress: Progress | None = None) -> list[Subset]:
    """Counts the samples of a new subset and appends it to a list, which is created if it does not exist.

    Args:
        file: path of the list.
        name: name of the new subset.
        patterns: patterns of its shards, as for `Subset.shards`, or their paths, as a shell expands a glob.
        progress: called with the number of tars indexed.

    Returns:
        The subsets of the list, the new one last.

    Raises:
        InputError: the list or a shard cannot be read, the name is empty or taken, a shard is already in the list,
            under this or another path, the shards of a listed subset have changed, or the list's folder cannot be
            written.
    """
    if not name:
        raise InputError(f"a data subset of {file} needs a name; give one")
    new = Subset(name, one_pattern(patterns))

    def appended(listed: list[Subset]) -> list[Subset]:
        nonlocal new
        if any(subset.name == name for subset in listed):
            raise InputError(
                f"{file} already has a data subset '{name}'; choose another name, or give --extend to add shards to it"
            )
        *old, new = count_subsets([*listed, new], progress=progress)
        return [*old, new]

    return _change(file, appended)


def extend_subset(file: Path, name: str, patterns: Sequence[str], progress: Progress | None = None) -> list[Subset]:
    """Appends shards to a subset of a list.

    Only for a subset that no run has used yet: a run requires the subsets that it has used to stay as they were.

    Args:
        file: path of the list.
        name: name of the subset to extend.
        patterns: patterns or paths of the new shards, as for `add_subset`.
        progress: called with the number of tars indexed.

    Returns:
        The subsets of the list.

    Raises:
        InputError: the list has no such subset, the old and the new shards cannot be written as one pattern, or as for
            `add_subset`.
    """
    addition = Subset(f"{name} (extension)", one_pattern(patterns))

    def extended(listed: list[Subset]) -> list[Subset]:
        nonlocal addition
        place = next((place for place, subset in enumerate(listed) if subset.name == name), None)
        if place is None:
            raise InputError(f"{file} has no data subset '{name}' to extend; leave out --extend to append it")
        joined = _join(listed[place].shards, addition.shards)  # before the counting, which may take hours
        # Counted together with all subsets, so that a shard that one of them already has is refused.
        *counted, addition = count_subsets([*listed, addition], progress=progress)
        old = counted[place]
        samples = (old.samples or 0) + (addition.samples or 0)
        of_shards = (old.shard_samples or ()) + (addition.shard_samples or ())
        counted[place] = replace(old, shards=joined, samples=samples, shard_samples=of_shards or None)
        return counted

    return _change(file, extended)


def _change(file: Path, changed: Callable[[list[Subset]], list[Subset]]) -> list[Subset]:
    """Applies a change to a list, writes it, and returns it.

    The change may count samples for hours. If another process has written the list meanwhile, the change is applied
    again.
    """
    while True:
        listed = _listed(file)
        subsets = changed(listed)
        with _locked(file):
            if _listed(file) == listed:
                write_subsets(subsets, file)
                return subsets


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Holds the list's lock; without effect where the file system has no locks.

    Raises:
        InputError: the list's folder cannot be written.
    """
    lock = file.with_name(f".{file.name}.lock")
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            opened = lock.open("a")
        except OSError as error:
            raise InputError(f"{lock} cannot be written ({error.strerror}); make its folder writable") from None
        with opened:
            with contextlib.suppress(OSError):  # no locks
                fcntl.flock(opened, fcntl.LOCK_EX)
            if not _is_at(lock, opened):  # the previous holder has removed it
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is_at(path: Path, opened: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(opened.fileno()))
    except FileNotFoundError:
        return False


def _listed(file: Path) -> list[Subset]:
    return read_subsets(file) if file.exists() else []


def _join(first: str, second: str) -> str:
    """Joins two patterns into one: the shards of the first, then those of the second.

    Raises:
        InputError: they cannot be joined, or one of them matches no shards.
    """
    shards = find_shards(first) + find_shards(second)
    parts = [*_alternatives(first), *_alternatives(second)]
    start = _common_start(parts)
    joined = f"{start}{{{','.join(part.removeprefix(start) for part in parts)}}}"
    try:
        is_same = find_shards(joined) == shards
    except InputError:  # a comma in a name, an address and a path
        is_same = False
    if not is_same:
        raise InputError(
            f"{first} and {second} cannot be written as one pattern; append the new shards as a data subset of their "
            "own, under another name and without --extend"
        )
    return joined


def _common_start(patterns: Sequence[str]) -> str:
    """The leading folders, or start of the URL, that all patterns share, up to the first brace or glob."""
    words = zip(*(re.split(r"(?<=[/:])", pattern) for pattern in patterns), strict=False)
    common = itertools.takewhile(lambda same: len(set(same)) == 1 and not re.search(r"[{}*?[]", same[0]), words)
    return "".join(same[0] for same in common)


def _alternatives(pattern: str) -> list[str]:
    """The alternatives of a pattern that ends in braces, `/data/{a.tar,b/{0..9}.tar}`; of any other, itself."""
    head, _, _ = pattern.partition("{")
    depth, commas = 0, []
    for place in range(len(head), len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[place], 0)
        if depth == 0 and place < len(pattern) - 1:
            return [pattern]
        if depth == 1 and pattern[place] == ",":
            commas.append(place)
    if not commas:
        return [pattern]
    cuts = itertools.pairwise([len(head), *commas, len(pattern) - 1])
    return [head + pattern[before + 1 : after] for before, after in cuts]


def one_pattern(patterns: Sequence[str]) -> str:
    """Joins patterns or paths into one pattern; paths become absolute, so that a run may be started anywhere.

    Raises:
        InputError: they cannot be joined.
    """
    if any(map(is_remote, patterns)):
        runs = _runs(patterns)
        if len(runs) > 1:
            raise InputError(f"write {few(patterns)} as one brace pattern: https://host/{{00000..00099}}.tar")
        return runs[0]
    patterns = [_absolute(pattern) for pattern in patterns]
    if len(patterns) == 1:
        return patterns[0]
    if any(re.search(r"[{},]", pattern) for pattern in patterns):
        raise InputError(f"{few(patterns)} cannot be joined; write several patterns in one pair of braces")
    runs = _runs(patterns)
    return runs[0] if len(runs) == 1 else f"{{{','.join(runs)}}}"


def _absolute(pattern: str) -> str:
    path = Path(pattern).expanduser().absolute()
    if glob.has_magic(pattern) and path.exists():  # brackets that are part of a name
        return glob.escape(str(path)) + ("/*.tar" if path.is_dir() else "")
    return str(path)


def _runs(paths: Sequence[str]) -> list[str]:
    """The paths in order, with consecutively numbered ones merged into patterns: `a/{00000..00310}.tar`."""
    runs: list[list[str]] = []
    for path in paths:
        if runs and _follows(path, runs[-1]):
            runs[-1].append(path)
        else:
            runs.append([path])
    return [run[0] if len(run) == 1 else _range(run[0], run[-1]) for run in runs]


def _range(first: str, last: str) -> str:
    start, number, end = _numbered(first)
    return f"{start}{{{number}..{_numbered(last)[1]}}}{end}"


def _follows(path: str, run: Sequence[str]) -> bool:
    """Whether the path continues a run of consecutively numbered paths, as braces would expand it."""
    start, number, end = _numbered(run[-1])
    if not number or path != f"{start}{str(int(number) + 1).zfill(len(number))}{end}":
        return False
    first = _numbered(run[0])[1]
    # If the first number is zero-padded, braces pad all numbers to the length of the longest.
    return str(int(first)) == first or len(_numbered(path)[1]) == len(first)


def _numbered(path: str) -> tuple[str, str, str]:
    """Splits a tar's path into the part before its number, the number and `.tar`; (path, "", "") if it has none."""
    match = re.fullmatch(r"(.*?)([0-9]+)(\.tar)", path, re.DOTALL)
    return (match[1], match[2], match[3]) if match else (path, "", "")
