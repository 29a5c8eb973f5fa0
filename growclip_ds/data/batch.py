"""Assembles batches from samples of an index."""

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
    """Pictures and captions that belong together, row by row.

    Attributes:
        images: (n, 3, S, S) uint8; n may be 0.
        text: the n captions, packed.
        keys: the n samples' keys.
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
        """Called by torch's data loader, so that copies to a GPU need not be waited for."""
        ids, cu_seqlens, max_seqlen = self.text
        text = PackedTokens(ids.pin_memory(), cu_seqlens.pin_memory(), max_seqlen)
        return replace(self, images=self.images.pin_memory(), text=text)


class LoadedBatch(NamedTuple):
    """A batch and the places that were left empty in it."""

    batch: Batch
    faults: list[Fault]


class BatchDecoder:
    """Decodes and tokenizes samples to a batch.

    Args:
        tokenizer: of the captions.
        image_size: side of the square pictures in pixels.
        exact: whether pictures are Pillow's to the bit; see `decode_picture`.
    """

    def __init__(self, tokenizer: Tokenizer, image_size: int, exact: bool = False) -> None:
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.exact = exact

    def __call__(self, samples: Iterable[Sample | Fault]) -> LoadedBatch:
        """The samples in their order, without the broken ones and those that could not be read."""
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
    """Reads, decodes and tokenizes samples: `loader[positions]` is the batch of these positions of the index.

    A dataset of torch's kind: goes to worker processes, which each open the shards on their own.
    """

    def __init__(self, index: ShardIndex, decoder: BatchDecoder) -> None:
        self._decode = decoder
        self._reader = ShardReader(index)

    def __getitem__(self, positions: Iterable[int]) -> LoadedBatch:
        """The samples in the order of the positions, without the broken ones."""
        return self._decode(map(self._read, positions))

    def _read(self, position: int) -> Sample | Fault:
        try:
            return self._reader.read(position)
        except BrokenSample as error:
            return Fault(self._reader.index.shard_of(position), error.cause)


def batches_in_order(index: ShardIndex, tokenizer: Tokenizer, image_size: int, batch_size: int) -> Iterator[Batch]:
    """This rank's share of an index, such as the held-out pairs, in its order; each rank has a contiguous share.

    For evaluation: the pictures are exact.
    """
    rank, world_size = distributed.rank(), distributed.world_size()
    loader = BatchLoader(index, BatchDecoder(tokenizer, image_size, exact=True))
    mine = range(len(index) * rank // world_size, len(index) * (rank + 1) // world_size)
    for start in range(mine.start, mine.stop, batch_size):
        yield loader[range(start, min(start + batch_size, mine.stop))].batch
