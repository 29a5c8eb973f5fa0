"""The members of a tar up to its proper end; tarfile itself takes most damage for the end. Imports no torch."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator

_LONGEST_END = 2**20  # bytes after the first end-of-archive block; programs pad to 10 KiB, or to a record size given


class _Header(tarfile.TarInfo):
    """A header that is missing or damaged raises, where tarfile would end; only an empty block is the end."""

    __slots__ = ()

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"the tar is cut off or damaged: {error}") from error


def members_of(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yields the members of a newly opened tar, which does not keep them.

    Raises:
        tarfile.ReadError: it is cut off or damaged, or its end is followed by more than padding: by another tar, or by
            zeros of a preallocated copy that was interrupted.
    """
    tar.tarinfo = _Header
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # or it would keep all of them
        yield member
    rest = tar.fileobj.read(_LONGEST_END + 1)
    if len(rest) > _LONGEST_END or rest.strip(b"\0"):
        raise tarfile.ReadError(f"the tar ends at byte {tar.offset}, but more than padding follows")
