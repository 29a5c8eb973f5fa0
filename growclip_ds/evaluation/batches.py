"""A rank's share of an evaluation set as batches, with the ranks in lockstep."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from growclip_ds.data.faults import BrokenSample
from growclip_ds.data.pictures import decode_picture
from growclip_ds.distributed import in_lockstep, rank, world_size
from growclip_ds.evaluation.datasets import EvaluationSet, picture_extension
from growclip_ds.evaluation.shards import RawSample, local_share, remote_share

DECODING_THREADS = 4

log = logging.getLogger(__name__)


class EvaluationBatch(NamedTuple):
    """Some of a rank's samples.

    Attributes:
        pixels: pictures, uint8 (n, 3, S, S), n may be 0.
        annotations: what is right for each, n of what the set's `parse` gives.
        unreadable: further samples, left out as their picture cannot be decoded.
    """

    pixels: Tensor
    annotations: list[Any]
    unreadable: int


def batches(dataset: EvaluationSet, image_size: int, batch_size: int) -> Iterator[EvaluationBatch]:
    """This rank's share of the set; a batch is decoded while its forerunner is used. Collective.

    Every rank reads its own samples and no others: of a local set as many as each other rank or one less, of a remote
    one whole tars. Every rank gets the same number of batches, those at the end of some being short or empty. A picture
    that cannot be decoded is left out with a warning.

    Raises:
        InputError: on every rank, if some rank cannot read its samples or one of them is not valid.
    """
    nothing = EvaluationBatch(torch.empty((0, 3, image_size, image_size), dtype=torch.uint8), [], 0)
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        for batch in in_lockstep(_own_batches(dataset, image_size, batch_size, pool)):
            yield nothing if batch is None else batch


def nothing_readable(unreadable: int) -> str:
    """Why there is no result, where all samples were left out."""
    if unreadable:
        return f"not one of its {unreadable:,} pictures can be decoded; make the set again"
    return "it has no samples; see that its location is right"


def _own_batches(
    dataset: EvaluationSet, image_size: int, batch_size: int, pool: ThreadPoolExecutor
) -> Iterator[EvaluationBatch]:
    if dataset.counts is None:
        samples = remote_share(dataset.shards, dataset.wants, rank(), world_size())
    else:
        samples = local_share(dataset.shards, dataset.counts, dataset.wants, rank(), world_size())

    def start_batch() -> list[tuple[Future[Tensor | None], Any]]:
        started = []
        for sample in islice(samples, batch_size):
            dataset.check(sample)
            annotation = dataset.annotations(sample, sample[dataset.annotation])
            started.append((pool.submit(_decode, sample, image_size), annotation))
        return started

    ahead = start_batch()
    while ahead:
        current, ahead = ahead, start_batch()
        decoded = [(future.result(), annotation) for future, annotation in current]
        readable = [(picture, annotation) for picture, annotation in decoded if picture is not None]
        pixels = torch.empty((len(readable), 3, image_size, image_size), dtype=torch.uint8)
        for place, (picture, _) in enumerate(readable):
            pixels[place] = picture
        yield EvaluationBatch(pixels, [annotation for _, annotation in readable], len(decoded) - len(readable))


def _decode(sample: RawSample, size: int) -> Tensor | None:
    extension = picture_extension(sample)
    try:
        return decode_picture(sample[extension], size, exact=True)
    except BrokenSample as error:
        log.warning("%s: %s.%s left out: %s", sample["__url__"], sample["__key__"], extension, error)
        return None
