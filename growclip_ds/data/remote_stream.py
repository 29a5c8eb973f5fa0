"""Streaming remote shards through webdataset: samples, counts and micro-batches."""

from __future__ import annotations

import itertools
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from torch.utils.data import IterableDataset, get_worker_info
from webdataset.tariterators import tarfile_samples

from growclip_ds.data.addresses import open_address
from growclip_ds.data.batch import BatchDecoder, LoadedBatch
from growclip_ds.data.faults import BrokenSample, Cause, Fault
from growclip_ds.data.remote import PLACES, Piece, RemoteOrder, RemoteShards
from growclip_ds.data.samples import Sample, decode_caption
from growclip_ds.data.scan import CAPTION_EXTENSION, PICTURE_EXTENSIONS, key_and_extension, samples_of_stats
from growclip_ds.data.shards import Progress
from growclip_ds.errors import InputError

RETRIES = 2  # of a shard whose stream breaks off
PAUSE = 1.0  # seconds before a shard is opened again
_STREAMS = 16  # shards that are counted at once

T = TypeVar("T")


def stream_shard(url: str) -> Iterator[Sample | Fault]:
    """A shard's samples in their order, undecoded. A stream that breaks off is opened again and goes on where it was.

    Raises:
        OSError: it broke off again and again.
    """
    return reopening(lambda: _stream_once(url), url)


def reopening(open_stream: Callable[[], Iterator[T]], url: str) -> Iterator[T]:
    """What a stream gives. One that breaks off is opened again and goes on where it was.

    Args:
        open_stream: starts it from its beginning.
        url: of it, for the message.

    Raises:
        OSError: it broke off again and again.
    """
    done = 0
    for attempt in itertools.count():
        try:
            for item in itertools.islice(open_stream(), done, None):
                done += 1
                yield item
            return
        except Exception as error:  # of the tar reader, the pipe, the program that fetches: each has its own
            if attempt == RETRIES:
                raise OSError(f"{url}: {error}") from error
            time.sleep(PAUSE)


def _stream_once(url: str) -> Iterator[Sample | Fault]:
    wanted = {*PICTURE_EXTENSIONS, CAPTION_EXTENSION}
    # Members are taken as bytes: webdataset's decoders, some of which unpickle, are not used.
    members = tarfile_samples([{"url": url}], select_files=lambda name: key_and_extension(name)[1] in wanted)
    for sample in members:
        key = sample["__key__"]
        picture = next((sample[extension] for extension in sample if extension in PICTURE_EXTENSIONS), None)
        if picture is None or CAPTION_EXTENSION not in sample:
            yield Fault(key, Cause.NO_PICTURE if picture is None else Cause.NO_CAPTION)
        else:
            yield Sample(key, picture, sample[CAPTION_EXTENSION])


def stream_piece(piece: Piece) -> Iterator[Sample | Fault]:
    """As many samples as the piece has, whatever happens to the shard: those not to be had are faults."""
    given = 0
    try:
        for sample in itertools.islice(stream_shard(piece.url), piece.skip, piece.skip + piece.count):
            given += 1
            yield sample
    except OSError:
        pass
    yield from itertools.repeat(Fault(piece.url, Cause.UNREADABLE_SHARD), piece.count - given)


def captions(shards: RemoteShards) -> Iterator[str]:
    """The usable captions of shards: what a tokenizer is trained on."""
    for url, samples in zip(shards.urls, shards.samples, strict=True):
        for sample in stream_piece(Piece(url, 0, samples)):
            if isinstance(sample, Sample):
                try:
                    yield decode_caption(sample.caption)
                except BrokenSample:
                    continue


def count_samples(urls: Sequence[str], progress: Progress | None = None) -> tuple[int, ...]:
    """Samples of remote shards: as img2dataset's `NNNNN_stats.json` beside them says, or by streaming them once.

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
        pass  # not img2dataset's
    try:
        return sum(1 for _ in stream_shard(url))
    except OSError as error:
        raise InputError(f"shard {error}; correct the address, or see that it can be fetched") from error


def _read_stats(url: str) -> bytes:
    if url.startswith("pipe:") or not url.endswith(".tar"):
        raise ValueError("no address beside it")
    address = url.removesuffix(".tar") + "_stats.json"
    if url.startswith("http"):
        with urllib.request.urlopen(address, timeout=30) as answer:
            return answer.read()
    with open_address(address) as stream:
        return stream.read()


class RemoteLoader(IterableDataset):
    """A rank's micro-batches, dealt to its data loading workers in turn.

    Args:
        order: who reads what; its last deal is of this number of ranks and workers.
        decoder: of the samples.
        rank: whose.
        start_iteration: first iteration to give, not before the last deal.
    """

    def __init__(self, order: RemoteOrder, decoder: BatchDecoder, rank: int, start_iteration: int) -> None:
        self.order, self.decoder, self.rank = order, decoder, rank
        self.start_iteration = start_iteration

    def __iter__(self) -> Iterator[LoadedBatch]:
        deal, order = self.order.deals[-1], self.order
        info = get_worker_info()
        first_turn = (self.start_iteration - deal.iteration) * deal.micro_batches
        # The loader asks worker 0 first: it takes the lane whose turn it is.
        worker = ((0 if info is None else info.id) + first_turn) % deal.workers
        epochs = range(deal.iteration // order.iterations_of_epoch, -(-order.iterations // order.iterations_of_epoch))
        turn = 0
        for epoch in epochs:
            start = max(deal.iteration, epoch * order.iterations_of_epoch)
            stop = min(order.iterations, (epoch + 1) * order.iterations_of_epoch)
            if stop <= self.start_iteration:
                turn += (stop - start) * deal.micro_batches
                continue
            samples, passed = None, 0
            for iteration in range(start, stop):
                for size in order.micro_batch_sizes(iteration, deal)[self.rank].tolist():
                    if turn % deal.workers == worker:
                        if turn < first_turn:
                            passed += size
                        else:
                            if samples is None:
                                samples = _in_turn(order.lane(epoch, self.rank, worker), passed)
                            yield self.decoder(itertools.islice(samples, size))
                    turn += 1


def _in_turn(places: Sequence[Sequence[Piece]], passed: int) -> Iterator[Sample | Fault]:
    """The samples of a lane, from its places in turn, after the first `passed`."""
    streams = [
        itertools.chain.from_iterable(map(stream_piece, _after(place, -(-(passed - number) // PLACES))))
        for number, place in enumerate(places)
    ]
    for turn in itertools.count(passed):
        sample = next(streams[turn % PLACES], None)
        if sample is None:
            return
        yield sample


def _after(pieces: Sequence[Piece], passed: int) -> Iterator[Piece]:
    """The pieces without their first samples."""
    for piece in pieces:
        skipped = min(max(0, passed), piece.count)
        passed -= skipped
        if skipped < piece.count:
            yield Piece(piece.url, piece.skip + skipped, piece.count - skipped)
