"""Samples of an index to a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from growclip_ds import distributed
from growclip_ds.data.faults import BrokenSample, Fault
from growclip_ds.data.pictures import decode_picture
from growclip_ds.data.samples import ShardReader, decode_caption
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


class BatchLoader:
    """Reads, decodes and tokenizes samples: `loader[positions]` is the batch of these positions of the index.

    A dataset of torch's kind: goes to worker processes, which each open the shards on their own.
    """

    def __init__(self, index: ShardIndex, tokenizer: Tokenizer, image_size: int) -> None:
        self.tokenizer = tokenizer
        self.image_size = image_size
        self._reader = ShardReader(index)

    def __getitem__(self, positions: Iterable[int]) -> LoadedBatch:
        """The samples in the order of the positions, without the broken ones."""
        pictures, captions, keys, faults = [], [], [], []
        for position in positions:
            key = self._reader.index.shard_of(position)
            try:
                key, picture, caption = self._reader.read(position)
                text = decode_caption(caption)
                pixels = decode_picture(picture, self.image_size)
            except BrokenSample as error:
                faults.append(Fault(key, error.cause))
                continue
            pictures.append(pixels)
            captions.append(text)
            keys.append(key)
        empty = torch.empty(0, 3, self.image_size, self.image_size, dtype=torch.uint8)
        images = torch.stack(pictures) if pictures else empty
        return LoadedBatch(Batch(images, self.tokenizer(captions), keys), faults)


def batches_in_order(index: ShardIndex, tokenizer: Tokenizer, image_size: int, batch_size: int) -> Iterator[Batch]:
    """This rank's share of an index, such as the held-out pairs, in its order; each rank has a contiguous share."""
    rank, world_size = distributed.rank(), distributed.world_size()
    loader = BatchLoader(index, tokenizer, image_size)
    mine = range(len(index) * rank // world_size, len(index) * (rank + 1) // world_size)
    for start in range(mine.start, mine.stop, batch_size):
        yield loader[range(start, min(start + batch_size, mine.stop))].batch
