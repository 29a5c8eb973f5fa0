"""Batches of a rank's share of an evaluation set, in lockstep with the other ranks."""

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
from growclip_ds.data.worker_processes import share_of_processors
from growclip_ds.distributed import in_lockstep, rank, world_size
from growclip_ds.evaluation.datasets import EvaluationSet, picture_extension
from growclip_ds.evaluation.shards import RawSample, local_share, remote_share

_THREADS = (4, 16)  # fewest and most threads that decode

log = logging.getLogger(__name__)


class EvaluationBatch(NamedTuple):
    """A batch of a rank's samples.

    Attributes:
        pixels: decoded images, uint8 (n, 3, S, S); n may be 0.
        annotations: ground truth of each image, n values from the set's `parse`.
        unreadable: number of further samples, skipped because their image cannot be decoded.
    """

    pixels: Tensor
    annotations: list[Any]
    unreadable: int


def batches(dataset: EvaluationSet, image_size: int, batch_size: int) -> Iterator[EvaluationBatch]:
    """Yields this rank's share of the set; each batch is decoded while the one before is in use. Collective.

    Every rank reads only its own samples: shares of a local set differ by at most one sample, those of a remote set are
    whole tars. Every rank yields the same number of batches, the last of which may be short or empty. An image that
    cannot be decoded is skipped with a warning.

    Raises:
        InputError: on every rank, if any rank cannot read its samples or finds an invalid one.
    """
    nothing = EvaluationBatch(torch.empty((0, 3, image_size, image_size), dtype=torch.uint8), [], 0)
    fewest, most = _THREADS
    with ThreadPoolExecutor(min(max(fewest, share_of_processors()), most)) as pool:
        for batch in in_lockstep(_own_batches(dataset, image_size, batch_size, pool)):
            yield nothing if batch is None else batch


def nothing_readable(unreadable: int) -> str:
    """Why there is no result on a set, for messages.

    Args:
        unreadable: number of samples skipped because their image cannot be decoded.
    """
    if unreadable:
        return f"none of its {unreadable:,} images can be decoded; make the set again"
    return "it has no samples; check its location"


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
        readable = [(image, annotation) for image, annotation in decoded if image is not None]
        pixels = torch.empty((len(readable), 3, image_size, image_size), dtype=torch.uint8)
        for place, (image, _) in enumerate(readable):
            pixels[place] = image
        yield EvaluationBatch(pixels, [annotation for _, annotation in readable], len(decoded) - len(readable))


def _decode(sample: RawSample, size: int) -> Tensor | None:
    extension = picture_extension(sample)
    try:
        return decode_picture(sample[extension], size, exact=True)
    except BrokenSample as error:
        log.warning("%s: %s.%s skipped: %s", sample["__url__"], sample["__key__"], extension, error)
        return None
