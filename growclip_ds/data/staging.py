"""Copies shards to a machine's local disk, for faster reading.

A shard /a/b.tar is copied to DIR/a/b.tar, with its modification time and its index. A run with `data.staged=DIR` that
trains on /a/b.tar reads the copy, if there is one and /a/b.tar has not changed since; lists of data and the run's
records keep the original path.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from growclip_ds.data.index_file import FOLDER, index_beside
from growclip_ds.data.shards import READERS, Progress, for_each_file
from growclip_ds.errors import InputError

_QUIET = 60.0  # seconds without a write after which a partial copy is taken for abandoned


def staged_path(shard: str, folder: Path | str) -> Path:
    """The path of the copy, existing or not, of a shard given by its absolute path."""
    path = Path(shard)
    return Path(folder).absolute() / path.relative_to(path.anchor)


def copy_or_own(shard: str, folder: Path | str) -> str:
    """The path to read a shard from: that of its copy in a folder, or its own if there is no copy or it has changed."""
    copy, own = staged_path(shard, folder), Path(shard)
    with contextlib.suppress(OSError):  # this machine may have only the copies
        if own.exists() and not _is_copy(copy, own):
            return shard
    return str(copy) if copy.exists() else shard


def stage_shards(shards: Sequence[str], folder: Path | str, progress: Progress | None = None) -> int:
    """Copies shards, with the indexes beside them, to a folder, several at a time; skips those already there.

    Args:
        shards: absolute paths of the shards.
        folder: a folder on the machine's local disk.
        progress: called with the numbers of shards done and to do.

    Returns:
        The total size in bytes of the shards copied.

    Raises:
        InputError: a shard cannot be read, or the folder cannot be written or has too little space.
    """

    def missing(shard: str) -> int:
        return 0 if _is_copy(staged_path(shard, folder), Path(shard)) else Path(shard).stat().st_size

    def stage(shard: str) -> None:
        copy = staged_path(shard, folder)
        _copy(Path(shard), copy)
        if (index := index_beside(shard)).exists():
            _copy(index, index_beside(str(copy)))

    try:
        needed = sum(for_each_file(missing, shards))
        Path(folder).mkdir(parents=True, exist_ok=True)
        for parent in {staged_path(shard, folder).parent for shard in shards}:
            _remove_partial(parent)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise InputError(
                f"{needed / 1e9:.1f} GB of shards are to be copied to {folder}, but only {free / 1e9:.1f} GB are free "
                "there; name a larger disk, or read the shards in place"
            )
        with ThreadPoolExecutor(READERS) as copiers:
            for done, _ in enumerate(copiers.map(stage, shards), start=1):
                if progress is not None:
                    progress(done, len(shards))
    except OSError as error:
        raise InputError(f"shards cannot be copied to {folder}: {error}") from error
    return needed


def _is_copy(copy: Path, source: Path) -> bool:
    try:
        there, original = copy.stat(), source.stat()
    except FileNotFoundError:
        return False
    return (there.st_size, there.st_mtime_ns) == (original.st_size, original.st_mtime_ns)


def _copy(source: Path, copy: Path) -> None:
    """Copies a file atomically, with its modification time."""
    if _is_copy(copy, source):
        return
    copy.parent.mkdir(parents=True, exist_ok=True)
    partial = copy.with_name(f".{copy.name}.{os.getpid()}.partial")
    try:
        shutil.copy2(source, partial)
        partial.replace(copy)
    finally:
        partial.unlink(missing_ok=True)


def _remove_partial(folder: Path) -> None:
    """Removes partial copies that killed processes left behind."""
    for partial in [*folder.glob(".*.partial"), *(folder / FOLDER).glob(".*.partial")]:
        name = re.fullmatch(r"\..+\.(?:tar|idx)\.(\d+)\.partial", partial.name)
        # The process may still be writing from another container, or another machine that shares the folder.
        if name and not psutil.pid_exists(int(name[1])):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - partial.stat().st_mtime > _QUIET:
                    partial.unlink()
