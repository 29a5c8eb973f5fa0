"""Copies of shards on a machine's local disk, for faster reading.

A shard /a/b.tar is kept as DIR/a/b.tar, with its time of change and its index. Whoever reads /a/b.tar with DIR given
takes the copy if there is one: lists of data and what runs record of it stay as they are.
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

_QUIET = 60.0  # seconds in which a copy that is being made is written to


def staged_path(shard: str, folder: Path | str) -> Path:
    """Where the copy of a shard, named by its absolute path, is or would be."""
    path = Path(shard)
    return Path(folder).absolute() / path.relative_to(path.anchor)


def stage_shards(shards: Sequence[str], folder: Path | str, progress: Progress | None = None) -> int:
    """Copies shards, and their indexes where they are beside them, to a folder, several at a time; what is there stays.

    Args:
        shards: absolute paths.
        folder: on the machine's own disk.
        progress: told how many are done of how many.

    Returns:
        How many bytes were copied.

    Raises:
        InputError: a shard cannot be read, or the folder cannot be written or has no room.
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
                f"{needed / 1e9:.1f} GB of shards are to be copied to {folder}, where {free / 1e9:.1f} GB are free; "
                "name a larger disk, or read them where they are"
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
    """Copies a file, with its time of change, so that the copy appears whole or not at all."""
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
    """Removes the copies that stagings which were killed had begun."""
    for partial in [*folder.glob(".*.partial"), *(folder / FOLDER).glob(".*.partial")]:
        name = re.fullmatch(r"\..+\.(?:tar|idx)\.(\d+)\.partial", partial.name)
        # A process of another container, or of another machine that shares the folder, seems dead but writes.
        if name and not psutil.pid_exists(int(name[1])):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - partial.stat().st_mtime > _QUIET:
                    partial.unlink()
