"""Reads samples in any order, with one positioned read per member, without scanning the tar."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import resource
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from growclip_ds.data.faults import BrokenSample, Cause
from growclip_ds.data.scan import BLOCK, key_and_extension
from growclip_ds.data.shards import READERS, ShardIndex, for_each_file

_HEADERS = 4  # blocks before a member's data, where webdataset wrote it; of what has more, the rest is read apart
_MOST_FILES = 2**16  # that a data loading worker may have open; processes usually begin with 1,024
_SHARE = 4  # the part of them that a reader takes is one in so many

T = TypeVar("T")


def may_open_many_files() -> None:
    """Lets this process have as many files open as its user allows, up to 65,536.

    A data loading worker reads all shards, but at scale only a few samples of each until it comes to others: with few
    open, shards would be opened nearly as often as read, which file systems of clusters take badly.
    """
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < min(_MOST_FILES, most):
        with contextlib.suppress(ValueError, OSError):  # the system's own limit was lowered below this user's
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(_MOST_FILES, most), most))


class Sample(NamedTuple):
    """A sample as it lies in its shard, undecoded."""

    key: str
    picture: bytes
    caption: bytes


class ShardReader:
    """Reads samples of an index by their position.

    Opens shards when they are needed and keeps the last used ones open. Goes to another process without its open
    files, so each data loading worker has its own.
    """

    def __init__(self, index: ShardIndex) -> None:
        self.index = index
        self._files: OrderedDict[str, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "_files": OrderedDict()}

    def read(self, position: int) -> Sample:
        """The sample at a position of the index.

        Raises:
            BrokenSample: the shard is gone, cannot be read, or no longer has at this place what it had.
        """
        return self._read(position, _sample)

    def read_caption(self, position: int) -> bytes:
        """The caption of a sample alone; raises what `read` does."""
        return self._read(position, _caption)

    def _read(self, position: int, read: Callable[[Any, list[int]], T]) -> T:
        shard, place = self.index.shard_of(position), self.index.places[position].tolist()
        try:
            try:
                return read(self._open(shard), place)
            except OSError:  # a handle of NFS that is stale stays so
                self._files.pop(shard, None)
                return read(self._open(shard), place)
        except (OSError, tarfile.TarError) as error:
            raise BrokenSample(Cause.UNREADABLE_SHARD, f"{shard}: {error}") from error

    def _open(self, shard: str) -> Any:
        if shard in self._files:
            self._files.move_to_end(shard)
        else:
            self._files[shard] = Path(shard).open("rb", buffering=0)  # noqa: SIM115 (closed when no longer referred to)
            allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            if len(self._files) > allowed // _SHARE:
                self._files.popitem(last=False)
        return self._files[shard]


def captions(index: ShardIndex) -> Iterator[str]:
    """The usable captions of an index, in its order: what a tokenizer is trained on.

    Without the pictures, and from several shards at a time: the file system is waited for at each caption.
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
    """The text of a caption, without white space around it.

    Raises:
        BrokenSample: it is not UTF-8, or there is nothing in it.
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
    """A member's name and data; the header's checksum and length show that it is still the one indexed."""
    data = os.pread(file.fileno(), _HEADERS * BLOCK + size, block * BLOCK)
    start, header = 0, _header(data)
    if header.type == tarfile.XHDTYPE and not re.search(rb"\d (path|size)=", data[BLOCK : BLOCK + header.size]):
        start = BLOCK * (1 - -header.size // BLOCK)  # more about the member, such as fractions of its time
        header = _header(data[start:])
    found = data[start + BLOCK : start + BLOCK + size]
    if not header.isreg():  # a name too long for the header, or not ASCII, has headers of its own before it
        file.seek(block * BLOCK)
        header = tarfile.TarFile(fileobj=file).firstmember  # type: ignore[attr-defined]
        found = os.pread(file.fileno(), size, header.offset_data)
    if header.size != size or len(found) != size:
        raise tarfile.ReadError(f"block {block} has {len(found)} of {header.size} bytes, indexed were {size}")
    return header.name, found


def _header(data: bytes) -> tarfile.TarInfo:
    return tarfile.TarInfo.frombuf(data[:BLOCK], "utf-8", "surrogateescape")
