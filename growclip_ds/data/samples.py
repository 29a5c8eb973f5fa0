"""Random access to samples: one positioned read per tar member, without scanning the tar."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import re
import resource
import tarfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from growclip_ds.data.faults import BrokenSample, Cause
from growclip_ds.data.scan import BLOCK, key_and_extension
from growclip_ds.data.shards import READERS, ShardIndex, for_each_file

_HEADERS = 4  # blocks of header before a member's data, as webdataset writes it; longer ones take a second read
_MOST_FILES = 2**16  # limit on open files of a data loading worker; the usual default is 1,024
_SHARE = 4  # a reader keeps at most 1/4 of the allowed files open
# What reads from Lustre and NFS raise while a server is away or has evicted this machine, usually for seconds.
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ESHUTDOWN, errno.EHOSTDOWN}
_LONGEST_PAUSE = 32  # seconds before a read is repeated after such errors, the last of doubling pauses from 1 s on
_IMPATIENT = 600.0  # seconds without pauses after some in vain: they must not add up to `health.hang_minutes`

T = TypeVar("T")


def may_open_many_files() -> None:
    """Raises this process's limit on open files to what its user is allowed, up to 65,536.

    A data loading worker reads from all shards, at scale only a few samples at a time from each. With few open files,
    it would open a shard for nearly every read, which cluster file systems handle badly.
    """
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < min(_MOST_FILES, most):
        with contextlib.suppress(ValueError, OSError):  # the system's limit was lowered below the user's
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(_MOST_FILES, most), most))


class Sample(NamedTuple):
    """An undecoded sample, as stored in its shard."""

    key: str
    picture: bytes
    caption: bytes


class ShardReader:
    """Reads samples of an index by their position.

    Opens shards on demand and keeps the most recently used ones open. Pickles without its open files, so each data
    loading worker has its own.
    """

    def __init__(self, index: ShardIndex) -> None:
        self.index = index
        self._files: OrderedDict[str, Any] = OrderedDict()
        self._in_vain = -math.inf  # when pauses last were, on the monotonic clock

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict()}

    def read(self, position: int) -> Sample:
        """The sample at a position of the index.

        Raises:
            BrokenSample: the shard is missing or unreadable, or no longer holds the indexed sample at this position.
        """
        return self._read(position, _sample)

    def read_caption(self, position: int) -> bytes:
        """The caption of a sample, without reading its image; raises as `read`."""
        return self._read(position, _caption)

    def _read(self, position: int, read: Callable[[Any, list[int]], T]) -> T:
        shard, place = self.index.shard_of(position), self.index.places[position].tolist()
        failures = 0
        while True:
            try:
                return read(self._open(shard), place)
            except (OSError, tarfile.TarError) as error:
                failures += 1
                self._files.pop(shard, None)  # a stale NFS handle stays stale: open the file again
                pause = self._pause(error, failures)
                if pause is None:
                    raise BrokenSample(Cause.UNREADABLE_SHARD, f"{shard}: {error}") from error
            time.sleep(pause)

    def _pause(self, error: Exception, failures: int) -> int | None:
        """Seconds to wait before a read that has failed so often is repeated; None: it is not."""
        if not isinstance(error, OSError):
            return None
        if failures == 1:
            return 0
        if error.errno not in _PASSING or time.monotonic() < self._in_vain + _IMPATIENT:
            return None
        pause = 2 ** (failures - 2)
        if pause > _LONGEST_PAUSE:
            self._in_vain = time.monotonic()
            return None
        return pause

    def _open(self, shard: str) -> Any:
        if shard in self._files:
            self._files.move_to_end(shard)
        else:
            self._files[shard] = Path(shard).open("rb", buffering=0)  # noqa: SIM115 (closed when no longer referenced)
            allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            if len(self._files) > allowed // _SHARE:
                self._files.popitem(last=False)
        return self._files[shard]


def captions(index: ShardIndex) -> Iterator[str]:
    """Yields the usable captions of an index, in its order, for training a tokenizer.

    Images are not read. Several shards are read concurrently, as every caption costs one wait for the file system.
    """
    ends = [0, *index.ends.tolist()]
    shards = [range(start, stop) for start, stop in itertools.pairwise(ends)]
    for first in range(0, len(shards), READERS):
        for found in for_each_file(partial(_captions, index), shards[first : first + READERS]):
            yield from found


def _captions(index: ShardIndex, positions: range) -> list[str]:
    reader, found = ShardReader(index), []
    for position in positions:
        with contextlib.suppress(BrokenSample):
            found.append(decode_caption(reader.read_caption(position)))
    return found


def decode_caption(data: bytes) -> str:
    """Decodes a caption and strips surrounding white space.

    Raises:
        BrokenSample: it is empty or not UTF-8.
    """
    try:
        caption = data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise BrokenSample(Cause.CAPTION_NOT_UTF8, str(error)) from error
    if not caption:
        raise BrokenSample(Cause.EMPTY_CAPTION)
    return caption


def _sample(file: Any, place: list[int]) -> Sample:
    name, picture = _read_member(file, *place[:2])
    return Sample(key_and_extension(name)[0] or name, picture, _caption(file, place))


def _caption(file: Any, place: list[int]) -> bytes:
    return _read_member(file, *place[2:])[1]


def _read_member(file: Any, block: int, size: int) -> tuple[str, bytes]:
    """A member's name and data; the header's checksum and length verify that it is still the indexed one."""
    data = os.pread(file.fileno(), _HEADERS * BLOCK + size, block * BLOCK)
    start, header = 0, _header(data)
    if header.type == tarfile.XHDTYPE and not re.search(rb"\d (path|size)=", data[BLOCK : BLOCK + header.size]):
        start = BLOCK * (1 - -header.size // BLOCK)  # a pax header with further fields, such as fractional times
        header = _header(data[start:])
    found = data[start + BLOCK : start + BLOCK + size]
    if not header.isreg():  # extra headers precede it: its name is too long for one, or not ASCII
        file.seek(block * BLOCK)
        header = tarfile.TarFile(fileobj=file).firstmember  # type: ignore[attr-defined]
        found = os.pread(file.fileno(), size, header.offset_data)
    if header.size != size or len(found) != size:
        raise tarfile.ReadError(f"block {block} has {len(found)} of {header.size} bytes, but {size} in the index")
    return header.name, found


def _header(data: bytes) -> tarfile.TarInfo:
    return tarfile.TarInfo.frombuf(data[:BLOCK], "utf-8", "surrogateescape")
