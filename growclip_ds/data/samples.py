"""Reads samples in any order, with one positioned read per member, without scanning the tar."""

from __future__ import annotations

import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from growclip_ds.data.faults import BrokenSample, Cause
from growclip_ds.data.scan import BLOCK, key_and_extension
from growclip_ds.data.shards import ShardIndex

_HEADERS = 4  # blocks before a member's data, where webdataset wrote it; of what has more, the rest is read apart
_OPEN_SHARDS = 256  # kept open by a reader; a quarter of the usual limit of a process


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
        shard = self.index.shard_of(position)
        try:
            try:
                return self._read(shard, position)
            except OSError:  # a handle of NFS that is stale stays so
                self._files.pop(shard, None)
                return self._read(shard, position)
        except (OSError, tarfile.TarError) as error:
            raise BrokenSample(Cause.UNREADABLE_SHARD, f"{shard}: {error}") from error

    def _read(self, shard: str, position: int) -> Sample:
        picture_block, picture_bytes, caption_block, caption_bytes = self.index.places[position].tolist()
        file = self._open(shard)
        name, picture = _read_member(file, picture_block, picture_bytes)
        _, caption = _read_member(file, caption_block, caption_bytes)
        return Sample(key_and_extension(name)[0] or name, picture, caption)

    def _open(self, shard: str) -> Any:
        if shard in self._files:
            self._files.move_to_end(shard)
        else:
            self._files[shard] = Path(shard).open("rb", buffering=0)  # noqa: SIM115 (closed when no longer referred to)
            if len(self._files) > _OPEN_SHARDS:
                self._files.popitem(last=False)
        return self._files[shard]


def captions(index: ShardIndex) -> Iterator[str]:
    """The usable captions of an index, in its order: what a tokenizer is trained on."""
    reader = ShardReader(index)
    for position in range(len(index)):
        try:
            yield decode_caption(reader.read(position).caption)
        except BrokenSample:
            continue


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
