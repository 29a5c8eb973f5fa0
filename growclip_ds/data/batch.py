"""Assembles batches of decoded images and tokenized captions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from growclip_ds import distributed
from growclip_ds.data.faults import BrokenSample, Fault
from growclip_ds.data.pictures import decode_picture
from growclip_ds.data.samples import Sample, ShardReader, decode_caption
from growclip_ds.data.shards import ShardIndex
from growclip_ds.data.tokens import Tokenizer
from growclip_ds.model.packed import PackedTokens


@dataclass(frozen=True, eq=False)
class Batch:
    """Images and their captions, row by row.

    Attributes:
        images: (n, 3, S, S) uint8; n may be 0.
        text: the n captions, tokenized and packed.
        keys: the keys of the n samples.
    """

    images: Tensor
    text: PackedTokens
    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        images = self.images.to(device, non_blocking=non_blocking)
        return replace(self, images=images, text=self.text.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Copies the batch to pinned memory, for asynchronous copies to a GPU; called by torch's data loader."""
        ids, cu_seqlens, max_seqlen = self.text
        text = PackedTokens(ids.pin_memory(), cu_seqlens.pin_memory(), max_seqlen)
        return replace(self, images=self.images.pin_memory(), text=text)


class LoadedBatch(NamedTuple):
    """A batch and the broken samples that are missing from it."""

    batch: Batch
    faults: list[Fault]


class BatchDecoder:
    """Decodes and tokenizes samples into a batch.

    Args:
        tokenizer: the tokenizer of the captions.
        image_size: side of the square images in pixels.
        exact: whether to decode images bit-identically to Pillow; see `decode_picture`.
    """

    def __init__(self, tokenizer: Tokenizer, image_size: int, exact: bool = False) -> None:
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.exact = exact

    def __call__(self, samples: Iterable[Sample | Fault]) -> LoadedBatch:
        """The batch of the samples, in their order, without those that are broken or could not be read."""
        pictures, captions, keys, faults = [], [], [], []
        for sample in samples:
            if isinstance(sample, Fault):
                faults.append(sample)
                continue
            try:
                text = decode_caption(sample.caption)
                pixels = decode_picture(sample.picture, self.image_size, self.exact)
            except BrokenSample as error:
                faults.append(Fault(sample.key, error.cause))
                continue
            pictures.append(pixels)
            captions.append(text)
            keys.append(sample.key)
        empty = torch.empty(0, 3, self.image_size, self.image_size, dtype=torch.uint8)
        images = torch.stack(pictures) if pictures else empty
        return LoadedBatch(Batch(images, self.tokenizer(captions), keys), faults)


class BatchLoader(Dataset[LoadedBatch]):
    """Reads, decodes and tokenizes samples: `loader[positions]` is the batch at these positions of the index.

    A map-style dataset for torch's data loader; each worker process opens the shards by itself.
    """

    def __init__(self, index: ShardIndex, decoder: BatchDecoder) -> None:
        self._decode = decoder
        self._reader = ShardReader(index)

    def __getitem__(self, positions: Iterable[int]) -> LoadedBatch:
        """The batch of the samples, in the order of the positions, without the broken ones."""
        return self._decode(map(self._read, positions))

    def _read(self, position: int) -> Sample | Fault:
        try:
            return self._reader.read(position)
        except BrokenSample as error:
            return Fault(self._reader.index.shard_of(position), error.cause)


def batches_in_order(index: ShardIndex, tokenizer: Tokenizer, image_size: int, batch_size: int) -> Iterator[Batch]:
    """Yields batches of this rank's contiguous share of an index, such as the held-out pairs, in the index's order.

    For evaluation, so images are decoded exactly.
    """
    rank, world_size = distributed.rank(), distributed.world_size()
    loader = BatchLoader(index, BatchDecoder(tokenizer, image_size, exact=True))
    mine = range(len(index) * rank // world_size, len(index) * (rank + 1) // world_size)
    for start in range(mine.start, mine.stop, batch_size):
        yield loader[range(start, min(start + batch_size, mine.stop))].batch
