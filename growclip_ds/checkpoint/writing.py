"""Writing a checkpoint in three stages; the longest needs no communication and can run in the background."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from growclip_ds.architecture import Shape
from growclip_ds.checkpoint.weights_file import DTYPES, SafetensorsWriter, checksum
from growclip_ds.distributed import all_gather_object, is_main, on_every_rank, on_main, rank, world_size
from growclip_ds.errors import InputError

INDEX = "weights.json"
FORMAT = "growclip-weights"
VERSION = 1


class CheckpointWriting:
    """A checkpoint that is being written and is published atomically.

    All ranks create it together, which removes leftovers of an interrupted write of the same folder. Each rank then
    calls `write`, or `start` to write in a thread, and all ranks together call `publish`.

    Args:
        folder: folder of the new checkpoint, on a file system that all ranks share; must not exist.
        shapes: shape of every tensor by name; all are fp32.
        owner: returns the rank that writes a tensor.
        description: describes the weights, as JSON; rank 0's is stored.

    Attributes:
        seconds: time that this rank took to write its file; 0 until it is written.

    Raises:
        InputError: on every rank, if the folder exists already or cannot be created.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, Shape],
        owner: Callable[[str], int],
        description: Mapping[str, Any],
    ) -> None:
        self.folder, self.shapes, self.description = folder, shapes, description
        self.seconds = 0.0
        self._partial = folder.parent / f".{folder.name}.partial"
        self._file = f"weights-{rank():05d}-of-{world_size():05d}.safetensors"
        self._mine = {name: (torch.float32, tuple(shape)) for name, shape in shapes.items() if owner(name) == rank()}
        self._written: tuple[dict[str, str], int] | None = None  # checksums and size
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        on_main(self._start_folder)

    def write(self, tensors: Iterable[tuple[str, Tensor | None]]) -> None:
        """Writes this rank's file. File system errors are raised by `publish`, on every rank.

        Args:
            tensors: the full tensors that this rank owns, by name; those of other ranks are ignored. Always exhausted,
                as the iterator may be collective.
        """
        start = time.monotonic()
        remaining = iter(tensors)
        try:
            with SafetensorsWriter(self._partial / self._file, self._mine) as writer:
                for name, tensor in remaining:
                    if name in self._mine:
                        assert tensor is not None  # on its owner
                        writer.write(name, tensor)
                    del tensor  # free it before the next one is created
            self._written = writer.checksums, writer.size
        except OSError as error:
            self._error = self._as_input_error(error, self._partial / self._file)
            for _ in remaining:
                pass
        self.seconds = time.monotonic() - start

    def start(self, tensors: Iterable[tuple[str, Tensor | None]]) -> None:
        """Calls `write` in a thread; the iterator must not be collective."""
        self._thread = threading.Thread(target=self._write_in_thread, args=(tensors,), daemon=True)
        self._thread.start()

    @property
    def is_written(self) -> bool:
        """Whether this rank's thread has ended, successfully or not."""
        return self._thread is None or not self._thread.is_alive()

    def publish(self) -> None:
        """Waits for all ranks' files and publishes the checkpoint. Collective.

        Raises:
            InputError: on every rank, if some file could not be written; the others are removed.
        """
        if self._thread is not None:
            self._thread.join()
        try:
            written = on_every_rank(self._result)
        except InputError:
            if is_main():
                shutil.rmtree(self._partial, ignore_errors=True)
            raise
        parts = all_gather_object((self._file, self._mine, *written))
        on_main(lambda: self._appear(parts))

    def _write_in_thread(self, tensors: Iterable[tuple[str, Tensor | None]]) -> None:
        try:
            self.write(tensors)
        except Exception as error:  # raised by `publish`
            self._error = error

    def _result(self) -> tuple[dict[str, str], int]:
        if self._error is not None:
            raise self._error
        assert self._written is not None, "nothing was written"
        return self._written

    def _start_folder(self) -> None:
        if self.folder.exists():
            raise InputError(f"{self.folder} exists already; remove it first or name another")
        try:
            if self._partial.exists():
                shutil.rmtree(self._partial)
            self._partial.mkdir(parents=True)
        except OSError as error:
            raise self._as_input_error(error, self.folder) from error

    def _appear(self, parts: list[tuple[str, dict[str, tuple[torch.dtype, Shape]], dict[str, str], int]]) -> None:
        entries = {
            name: {"file": file, "dtype": DTYPES[dtype], "shape": list(shape), "crc32": checksums[name]}
            for file, mine, checksums, _ in parts
            for name, (dtype, shape) in mine.items()
        }
        index = {
            "format": FORMAT,
            "version": VERSION,
            "description": dict(self.description),
            "files": {file: size for file, _, _, size in parts},
            "tensors": {name: entries[name] for name in self.shapes},
        }
        index["crc32"] = index_checksum(index)
        try:
            with (self._partial / INDEX).open("w", encoding="utf-8") as stream:
                json.dump(index, stream, indent=1)
                stream.flush()
                os.fsync(stream.fileno())
            _fsync_folder(self._partial)
            self._partial.replace(self.folder)
            _fsync_folder(self.folder.parent)
        except OSError as error:
            shutil.rmtree(self._partial, ignore_errors=True)
            raise self._as_input_error(error, self.folder) from error

    def _as_input_error(self, error: OSError, path: Path) -> InputError:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "make room" if is_full else "check its file system and your permissions there,"
        return InputError(f"{path} cannot be written: {error}; {remedy} or name another folder")


def index_checksum(index: Mapping[str, Any]) -> str:
    """Checksum of an index as it reads back from JSON, without its own `crc32` entry."""
    rest = json.loads(json.dumps({key: value for key, value in index.items() if key != "crc32"}))
    return checksum(memoryview(json.dumps(rest, sort_keys=True).encode()))


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
