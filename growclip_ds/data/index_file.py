"""The index of a tar on disk: built once, stored beside the tar, rebuilt when the tar has changed. Imports no torch.

    .growclip/00012.tar.idx   "GROWCLIP", format, length of the JSON; JSON; (n, 4) little-endian int32; faults as JSON

If the tar's folder cannot be written, the file is in the user's cache ($XDG_CACHE_HOME or ~/.cache, growclip/index).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from growclip_ds.data.faults import Cause, Fault
from growclip_ds.data.scan import scan
from growclip_ds.files import write_bytes

FOLDER = ".growclip"
FORMAT = 1
_HEADER = struct.Struct("<8sII")
_MAGIC = b"GROWCLIP"
_SPOTS, _SPOT = 8, 4096  # number of spots of a tar that its stamp hashes, and bytes of each
ROW = 16  # bytes per sample
# Raised if there is no index, it is damaged or of another format, or the tar cannot be opened.
_NO_INDEX = (OSError, ValueError, KeyError, TypeError, struct.error)


@dataclass(frozen=True)
class IndexedShard:
    """A tar and its index.

    Attributes:
        path: absolute path of the tar.
        identity: the tar's size in bytes, modification time in ns, and a stamp of its content; the index is valid only
            while they are unchanged.
        samples: number of usable samples.
        left_out: number of unusable samples, by cause.
        file: the index file; None if it could not be written anywhere.
        offset: byte offset of the rows in the file.
        content: the rows, followed by the faults, if there is no file.
    """

    path: str
    identity: tuple[int, int, str]
    samples: int
    left_out: Counter[Cause]
    file: Path | None
    offset: int = 0
    content: bytes = b""

    @property
    def stamp(self) -> str:
        """A hash of spots of the content, equal for copies of a tar."""
        return self.identity[2]

    def places(self) -> np.ndarray:
        """The samples' rows, (n, 4) int32; see `Scan`.

        Raises:
            OSError: the file is missing or too short.
        """
        if self.file is None:
            return np.frombuffer(self.content, dtype="<i4", count=4 * self.samples).reshape(-1, 4)
        with self.file.open("rb") as file:
            places = np.fromfile(file, dtype="<i4", count=4 * self.samples, offset=self.offset)
        if len(places) != 4 * self.samples:
            raise OSError(f"{self.file} is too short")
        return places.reshape(-1, 4)

    def faults(self) -> list[Fault]:
        """The unusable samples."""
        if not self.left_out:
            return []
        content = self.content if self.file is None else self.file.read_bytes()
        data = content[self.offset + ROW * self.samples :]
        return [Fault(key, Cause(cause)) for key, cause in json.loads(data)]


def index_beside(path: str) -> Path:
    """Where the index of a tar is stored if the tar's folder can be written."""
    tar = Path(path)
    return tar.parent / FOLDER / f"{tar.name}.idx"


def _index_in_cache(path: str) -> Path:
    """Where the index of a tar is stored otherwise."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.blake2b(os.path.realpath(path).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return cache / "growclip" / "index" / f"{name}.idx"


_PLACES = (index_beside, _index_in_cache)  # in order of preference


def is_beside(shard: IndexedShard) -> bool:
    """Whether the index is stored beside the tar."""
    return shard.file == index_beside(shard.path)


def is_here(shard: IndexedShard) -> bool:
    """Whether this machine can read the index of a tar that another machine has read or built."""
    if shard.file is None:
        return True
    try:
        return _read(shard.path, shard.file) == shard
    except _NO_INDEX:
        return False


def read_index(path: str) -> IndexedShard | None:
    """Reads the index of a tar; None if there is none, or the tar has changed since.

    Hashes eight spots of the tar; its headers are not read.
    """
    for place in _PLACES:
        try:
            found = _read(path, place(path))
            if found.identity == identify(path):
                return found
        except _NO_INDEX:
            continue
    return None


def build_index(path: str) -> IndexedShard:
    """Scans a tar and stores its index."""
    try:
        identity = identify(path)
    except OSError:
        identity = (0, 0, "")  # the scan reports it as damaged
    scanned = scan(path)
    description = {
        "identity": identity,
        "samples": len(scanned.places),
        "left_out": dict(scanned.left_out),
    }
    text = json.dumps(description).encode()
    text += b" " * (-(_HEADER.size + len(text)) % ROW)
    offset, rows = _HEADER.size + len(text), scanned.places.tobytes()
    faults = json.dumps(scanned.faults).encode()
    for place in _PLACES if identity[2] else ():
        file = place(path)
        try:
            write_bytes(file, _HEADER.pack(_MAGIC, FORMAT, len(text)) + text + rows + faults)
        except OSError:
            continue
        return IndexedShard(path, identity, len(scanned.places), scanned.left_out, file, offset)
    return IndexedShard(path, identity, len(scanned.places), scanned.left_out, None, content=rows + faults)


def identify(path: str) -> tuple[int, int, str]:
    """Size in bytes, modification time in ns, and a stamp of the content: a hash of the size and eight spots.

    Raises:
        OSError: the file cannot be opened or read.
    """
    with Path(path).open("rb") as file:
        status = os.fstat(file.fileno())
        digest = hashlib.blake2b(str(status.st_size).encode(), digest_size=16)
        for spot in range(_SPOTS):
            digest.update(os.pread(file.fileno(), _SPOT, max(0, status.st_size - _SPOT) * spot // (_SPOTS - 1)))
    return status.st_size, status.st_mtime_ns, digest.hexdigest()


def _read(path: str, file: Path) -> IndexedShard:
    with file.open("rb") as opened:
        magic, version, length = _HEADER.unpack(opened.read(_HEADER.size))
        if (magic, version) != (_MAGIC, FORMAT):
            raise ValueError(f"{file} has another format")
        description = json.loads(opened.read(length))
    size, changed, stamp = description["identity"]
    left_out = Counter({Cause(cause): count for cause, count in description["left_out"].items()})
    found = IndexedShard(path, (size, changed, stamp), description["samples"], left_out, file, _HEADER.size + length)
    if file.stat().st_size < found.offset + ROW * found.samples:
        raise ValueError(f"{file} is too short")
    return found
