"""Reads every sample once, as training would, and reports statistics and broken samples."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from growclip_ds.data.faults import BrokenSample, Cause, Fault
from growclip_ds.data.index_file import IndexedShard
from growclip_ds.data.pictures import decode_picture, open_picture
from growclip_ds.data.remote import Piece
from growclip_ds.data.remote_stream import stream_piece
from growclip_ds.data.samples import Sample, ShardReader, decode_caption
from growclip_ds.data.shards import Progress, collect
from growclip_ds.data.tokens import Tokenizer
from growclip_ds.data.worker_processes import map_in_processes

_SIDE = 224  # side in pixels to decode images to
_BINS = 12  # maximum bins of a histogram


class BrokenPlace(NamedTuple):
    """A broken sample and its shard."""

    key: str
    cause: Cause
    shard: str


@dataclass
class DataReport:
    """Statistics of shards that were read.

    Attributes:
        unit: unit of caption lengths: `tokens`, including start and end of text, or `words`.
        shards: number of shards.
        size: total size of the local tars in bytes.
        samples: number of samples, including broken ones.
        broken: number of broken samples, by cause.
        broken_samples: the broken samples; one entry stands for all that are lost from a damaged shard.
        short_sides, long_sides: number of images by the length of their short and long side in pixels.
        formats: number of images by format.
        caption_lengths: number of captions by length.
    """

    unit: str
    shards: int = 0
    size: int = 0
    samples: int = 0
    broken: Counter[Cause] = field(default_factory=Counter)
    broken_samples: list[BrokenPlace] = field(default_factory=list)
    short_sides: Counter[int] = field(default_factory=Counter)
    long_sides: Counter[int] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    caption_lengths: Counter[int] = field(default_factory=Counter)

    @property
    def broken_share(self) -> float:
        return sum(self.broken.values()) / self.samples if self.samples else 0.0

    def add(self, other: DataReport) -> None:
        """Adds the report of other shards."""
        self.shards += other.shards
        self.size += other.size
        self.samples += other.samples
        self.broken.update(other.broken)
        self.broken_samples.extend(other.broken_samples)
        self.short_sides.update(other.short_sides)
        self.long_sides.update(other.long_sides)
        self.formats.update(other.formats)
        self.caption_lengths.update(other.caption_lengths)

    def to_json(self) -> dict[str, Any]:
        """The report for JSON; histograms are lists of [first, last, count], both ends included."""
        return {
            "shards": self.shards,
            "bytes": self.size,
            "samples": self.samples,
            "usable": self.samples - sum(self.broken.values()),
            "broken": {str(cause): count for cause, count in self.broken.most_common()},
            "broken_share": self.broken_share,
            "broken_samples": [place._asdict() for place in self.broken_samples],
            "formats": dict(self.formats.most_common()),
            "short_side": summary(self.short_sides),
            "long_side": summary(self.long_sides),
            "captions": {"unit": self.unit, **summary(self.caption_lengths), "histogram": bins(self.caption_lengths)},
        }


def check_data(
    local: Sequence[IndexedShard],
    remote: Iterable[tuple[str, int]] = (),
    tokenizer: Tokenizer | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> DataReport:
    """Reads all samples of shards and reports on them.

    Args:
        local: the indexed local tars.
        remote: URLs of shards to stream, each with its number of samples.
        tokenizer: the tokenizer that measures captions; None: measure them in words.
        workers: number of processes that read and decode; 0 or 1: only this one.
        progress: called with the numbers of shards done and to do.
    """
    shards: list[IndexedShard | Piece] = [*local, *(Piece(url, 0, samples) for url, samples in remote)]
    report = DataReport(unit="tokens" if tokenizer else "words")
    for done, found in enumerate(_reports(shards, tokenizer, workers), start=1):
        report.add(found)
        if progress is not None:
            progress(done, len(shards))
    report.broken_samples.sort(key=lambda place: (place.shard, place.key))
    return report


def _reports(shards: Sequence[IndexedShard | Piece], tokenizer: Tokenizer | None, workers: int) -> Iterator[DataReport]:
    if workers < 2 or len(shards) < 2:
        yield from (check_shard(shard, tokenizer) for shard in shards)
        return
    yield from map_in_processes(partial(check_shard, tokenizer=tokenizer), shards, min(workers, len(shards)))


def check_shard(shard: IndexedShard | Piece, tokenizer: Tokenizer | None = None) -> DataReport:
    """Reads all samples of one shard and reports on them."""
    report = DataReport(unit="tokens" if tokenizer else "words", shards=1)
    if isinstance(shard, Piece):
        name, samples = shard.url, stream_piece(shard)
    else:
        name, samples = shard.path, _samples(shard)
        report.size = shard.identity[0]
        report.samples = sum(shard.left_out.values())
        report.broken.update(shard.left_out)
        report.broken_samples += [BrokenPlace(*fault, name) for fault in shard.faults()]
    captions: list[str] = []
    for sample in samples:
        report.samples += 1
        if isinstance(sample, Sample):
            try:
                captions.append(_measure(sample, report))
                continue
            except BrokenSample as error:
                sample = Fault(sample.key, error.cause)
        report.broken[sample.cause] += 1
        report.broken_samples.append(BrokenPlace(*sample, name))
    report.caption_lengths.update(_lengths(captions, tokenizer))
    return report


def _measure(sample: Sample, report: DataReport) -> str:
    """Adds a sample's image to the report and returns its caption.

    Raises:
        BrokenSample: the image or the caption cannot be used.
    """
    caption = decode_caption(sample.caption)
    decode_picture(sample.picture, _SIDE)
    with open_picture(sample.picture) as picture:
        report.short_sides[min(picture.size)] += 1
        report.long_sides[max(picture.size)] += 1
        report.formats[picture.format or "?"] += 1
    return caption


def _samples(shard: IndexedShard) -> Iterator[Sample | Fault]:
    reader = ShardReader(collect([shard]))
    for position in range(shard.samples):
        try:
            yield reader.read(position)
        except BrokenSample as error:
            yield Fault(shard.path, error.cause)


def _lengths(captions: Sequence[str], tokenizer: Tokenizer | None) -> list[int]:
    if tokenizer is None:
        return [len(caption.split()) for caption in captions]
    return tokenizer(captions).cu_seqlens.diff().tolist() if captions else []


def summary(counts: Counter[int]) -> dict[str, float]:
    """Minimum, mean, median, 95th percentile and maximum of a distribution, from the counts of its values."""
    if not counts:
        return {}
    total = counts.total()
    ordered = sorted(counts.items())
    up_to = list(itertools.accumulate(count for _, count in ordered))

    def at(share: float) -> int:
        return next(number for (number, _), there in zip(ordered, up_to, strict=True) if there >= share * total)

    mean = sum(number * count for number, count in ordered) / total
    return {"min": ordered[0][0], "mean": mean, "median": at(0.5), "p95": at(0.95), "max": ordered[-1][0]}


def bins(counts: Counter[int]) -> list[tuple[int, int, int]]:
    """A histogram with bins of equal width: (first value, last value, count) each."""
    if not counts:
        return []
    first, last = min(counts), max(counts)
    width = -(-(last - first + 1) // _BINS)
    starts = range(first, last + 1, width)
    return [(s, s + width - 1, sum(counts[number] for number in range(s, s + width))) for s in starts]
