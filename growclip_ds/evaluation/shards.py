"""Undecoded samples of an evaluation set's tars, and which rank reads which.

Samples are grouped as in webdataset: consecutive members with the same name up to the first dot. A local tar is read by
its headers, seeking over unwanted members; a remote tar is streamed once, by one rank.
"""

from __future__ import annotations

import contextlib
import itertools
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from webdataset.tariterators import group_by_keys

from growclip_ds.data.remote_stream import reopening, whole_tar
from growclip_ds.data.tar import members_of
from growclip_ds.errors import InputError

Wanted = Callable[[str], bool]  # whether to read a member, by its name
RawSample = dict[str, Any]  # contents by extension, plus webdataset's `__key__` and `__url__`


def local_headers(shard: str, wanted: Wanted) -> Iterator[tuple[tarfile.TarFile, RawSample]]:
    """Yields the samples of a local tar with headers in place of contents, each with the open tar.

    Raises:
        InputError: the tar cannot be read, or is cut off or damaged.
    """

    def members(tar: tarfile.TarFile) -> Iterator[RawSample]:
        for member in members_of(tar):
            if member.isreg() and wanted(member.name):
                yield {"fname": member.name, "data": member, "__url__": shard}

    with _reading(shard), tarfile.open(shard, "r:") as tar:
        for sample in group_by_keys(members(tar)):
            yield tar, sample


def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The content of a member.

    Raises:
        InputError: the member cannot be read.
    """
    with _reading(str(tar.name)):
        return tar.extractfile(member).read()  # type: ignore[union-attr]  (it is a regular file)


@contextlib.contextmanager
def _reading(shard: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:  # webdataset reports duplicates as ValueError
        raise InputError(f"{shard}: not a readable tar file ({error}); copy or make it again") from error


def local_share(
    shards: Sequence[str], counts: Sequence[int], wanted: Wanted, rank: int, world_size: int
) -> Iterator[RawSample]:
    """Yields a rank's samples of local tars: a contiguous range, whose length differs by at most one between ranks.

    Args:
        shards: paths of the tars.
        counts: number of samples in each tar.
        wanted: whether to read a member, by its name.
        rank, world_size: the rank and the number of ranks.

    Raises:
        InputError: a tar cannot be read, or has fewer samples than `counts` says.
    """
    total = sum(counts)
    first, last = (total * r // world_size for r in (rank, rank + 1))
    start = 0
    for shard, count in zip(shards, counts, strict=True):
        skip, stop = max(first - start, 0), min(last - start, count)
        start += count
        if skip >= stop:
            continue
        found = 0
        for tar, sample in itertools.islice(local_headers(shard, wanted), skip, stop):
            found += 1
            yield {key: content(tar, v) if isinstance(v, tarfile.TarInfo) else v for key, v in sample.items()}
        if found < stop - skip:
            raise InputError(f"{shard}: {skip + found} samples instead of {count}; the file has changed, start again")


def stream(shard: str, wanted: Wanted) -> Iterator[RawSample]:
    """Yields the samples of a remote tar.

    Raises:
        InputError: it cannot be streamed to its end.
    """
    try:
        yield from reopening(lambda: whole_tar(shard, wanted), shard)
    except OSError as error:
        raise InputError(f"{error}; correct the URL, or check that it can be fetched") from error


def remote_share(shards: Sequence[str], wanted: Wanted, rank: int, world_size: int) -> Iterator[RawSample]:
    """Yields a rank's samples of remote tars: rank i mod W reads tar i.

    Raises:
        InputError: a tar cannot be streamed to its end.
    """
    for shard in shards[rank::world_size]:
        yield from stream(shard, wanted)
