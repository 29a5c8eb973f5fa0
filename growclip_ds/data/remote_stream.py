"""Streams remote shards through webdataset: their samples, and how many they have."""

from __future__ import annotations

import itertools
import logging
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.error import HTTPError

from webdataset.tariterators import group_by_keys

from growclip_ds.data.addresses import open_address
from growclip_ds.data.faults import BrokenSample, Cause, Fault
from growclip_ds.data.remote import Piece, RemoteShards
from growclip_ds.data.samples import Sample, decode_caption
from growclip_ds.data.scan import (
    CAPTION_EXTENSION,
    PICTURE_EXTENSIONS,
    is_of_webdataset,
    key_and_extension,
    samples_of_stats,
)
from growclip_ds.data.shards import Progress
from growclip_ds.data.tar import members_of
from growclip_ds.errors import InputError

RETRIES = 10  # consecutive retries of a stream that yield nothing new
_OWN_RETRIES = 3  # retries if a stream always ends at the same sample, or is refused: the shard itself is at fault
PAUSE = 1.0  # seconds before the first retry; doubled for each further one, up to the longest
_LONGEST_PAUSE = 60.0
PATIENCE = 300.0  # maximum seconds without a sample; a quarter of the default `health.hang_minutes`
_SAID = 4  # failed tries after which the user is told
_STREAMS = 16  # shards counted concurrently

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Patience:
    """The common time limit for retries of streams that are read in turn.

    If a server fails, they break off one after the other. A time limit for each could add up to more than
    `health.hang_minutes`.
    """

    def __init__(self) -> None:
        self._since: float | None = None

    def restore(self) -> None:
        """Resets the time limit: a stream has yielded something new."""
        self._since = None

    def lasts(self, pause: float) -> bool:
        """Whether a broken-off stream may wait for `pause` more seconds."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        return now + pause - self._since <= PATIENCE


def stream_shard(url: str, patience: Patience | None = None) -> Iterator[Sample | Fault]:
    """Yields a shard's samples in order, undecoded; for arguments and errors see `reopening`."""
    return reopening(lambda: _stream_once(url), url, patience)


def reopening(open_stream: Callable[[], Iterator[T]], url: str, patience: Patience | None = None) -> Iterator[T]:
    """Yields the items of a stream; if it breaks off, reopens it and continues after the last item yielded.

    There is no limit on the number of times, as long as the stream makes progress in between.

    Args:
        open_stream: opens the stream at its beginning.
        url: the stream's URL, for messages.
        patience: the time limit shared with other streams that are read in turn; None: one of its own.

    Raises:
        OSError: repeated retries have yielded nothing new.
    """
    patience = patience or Patience()
    done = failures = own = 0
    while True:
        before, seen = done, 0
        try:
            for item in open_stream():
                seen += 1
                if seen > done:
                    done = seen
                    patience.restore()
                    yield item
            return
        except Exception as error:  # the tar reader, the pipe and the fetching program each raise their own
            failures = 1 if done > before else failures + 1
            own = own + 1 if done == before and (0 < seen == done or is_refusal(error)) else 0
            pause = min(PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE)
            lasts = patience.lasts(pause) or failures == 1  # always once: the other streams may have used up the time
            if failures > RETRIES or own > _OWN_RETRIES or not lasts:
                raise OSError(f"{url}: {error}") from error
            if failures == _SAID:
                _log.warning("%s: %s; retrying for up to %.0f minutes", url, error, PATIENCE / 60)
        time.sleep(pause)  # outside the handler, where the error, and with it the broken stream, is released


def is_refusal(error: Exception) -> bool:
    """Whether a server has refused permanently; 408, 425 and 429 mean that it may answer later."""
    return isinstance(error, HTTPError) and 400 <= error.code < 500 and error.code not in (408, 425, 429)


class _Members:
    """The wanted members of a streamed tar, for `group_by_keys`.

    Attributes:
        damage: after the iteration, what is wrong where it ended, so that members may be lost; "" if nothing.
    """

    def __init__(self, url: str, wanted: Callable[[str], bool]) -> None:
        self._url, self._wanted = url, wanted
        self.damage = ""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with tarfile.open(fileobj=open_address(self._url), mode="r|*") as tar:
            try:
                for member in members_of(tar):
                    if member.isreg() and not is_of_webdataset(member.name) and self._wanted(member.name):
                        # They stay bytes: webdataset's decoders, some of which unpickle, are not used.
                        data = tar.extractfile(member).read()  # type: ignore[union-attr]
                        yield {"fname": member.name, "data": data, "__url__": self._url}
            except tarfile.ReadError as error:
                self.damage = str(error)


def _without_repeats(members: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A tar's members for `group_by_keys`; if a sample repeats an extension, only the first one, as in `scan`."""
    current: str | None = None
    extensions: set[str] = set()
    for member in members:
        key, extension = key_and_extension(member["fname"])
        if key != current:
            current, extensions = key, set()
        if extension not in extensions:
            extensions.add(extension)
            yield member


def whole_tar(url: str, wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """Yields all samples of a tar, as contents by extension; for use with `reopening`.

    Raises:
        OSError: the tar is cut off or damaged; raised in place of the last sample, which may be incomplete.
    """
    members = _Members(url, wanted)
    last = None
    for sample in group_by_keys(members):
        if last is not None:
            yield last
        last = sample
    if members.damage:
        raise OSError(members.damage)
    if last is not None:
        yield last


def _stream_once(url: str) -> Iterator[Sample | Fault]:
    wanted = {*PICTURE_EXTENSIONS, CAPTION_EXTENSION}
    members = _Members(url, lambda name: key_and_extension(name)[1] in wanted)
    half = None
    for sample in group_by_keys(_without_repeats(members)):
        if half is not None:
            yield half
            half = None
        key = sample["__key__"]
        picture = next((sample[extension] for extension in sample if extension in PICTURE_EXTENSIONS), None)
        if picture is None or CAPTION_EXTENSION not in sample:
            half = Fault(key, Cause.NO_PICTURE if picture is None else Cause.NO_CAPTION)
        else:
            yield Sample(key, picture, sample[CAPTION_EXTENSION])
    # Archives without an end marker, which some programs write, cannot be told from those truncated between members, so
    # they cannot be counted. With a count from elsewhere they can be read, as nothing beyond it is requested.
    if members.damage:
        raise OSError(members.damage)
    if half is not None:  # its other half is missing, not truncated
        yield half


def stream_piece(piece: Piece, patience: Patience | None = None) -> Iterator[Sample | Fault]:
    """Yields exactly as many samples as the piece has; those that cannot be read are yielded as faults."""
    given = 0
    try:
        for sample in itertools.islice(stream_shard(piece.url, patience), piece.skip, piece.skip + piece.count):
            given += 1
            yield sample
    except OSError:
        pass
    yield from itertools.repeat(Fault(piece.url, Cause.UNREADABLE_SHARD), piece.count - given)


def captions(shards: RemoteShards) -> Iterator[str]:
    """Yields the usable captions of shards, for training a tokenizer."""
    for url, samples in zip(shards.urls, shards.samples, strict=True):
        for sample in stream_piece(Piece(url, 0, samples)):
            if isinstance(sample, Sample):
                try:
                    yield decode_caption(sample.caption)
                except BrokenSample:
                    continue


def count_samples(urls: Sequence[str], progress: Progress | None = None) -> tuple[int, ...]:
    """Counts the samples of remote shards: from img2dataset's `NNNNN_stats.json` beside one, or by streaming it.

    Args:
        urls: the URLs of the shards.
        progress: called with the numbers of shards counted and to count.

    Returns:
        The number of samples in each shard.

    Raises:
        InputError: a shard cannot be streamed.
    """
    counts = []
    with ThreadPoolExecutor(_STREAMS) as pool:
        for count in pool.map(_count, urls):
            counts.append(count)
            if progress is not None:
                progress(len(counts), len(urls))
    return tuple(counts)


def _count(url: str) -> int:
    try:
        return samples_of_stats(_read_stats(url))
    except (OSError, ValueError):
        pass  # not written by img2dataset
    try:
        return sum(1 for _ in stream_shard(url))
    except OSError as error:
        raise InputError(f"shard {error}; correct the URL, or check that it can be fetched") from error


def _read_stats(url: str) -> bytes:
    if url.startswith("pipe:") or not url.endswith(".tar"):
        raise ValueError(f"{url} is not the URL of a .tar")
    with open_address(url.removesuffix(".tar") + "_stats.json") as stream:
        return stream.read()
