"""Packed (varlen) captions, without computation for padding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from growclip_kernels.packed_attention import SequenceGroup, Sequences, check_boundaries


class PackedTokens(NamedTuple):
    """Token ids of several captions, concatenated.

    Attributes:
        ids: (T,) int64, each caption ending with the end-of-text token.
        cu_seqlens: (n + 1,) int32, the cumulative caption lengths, from 0 to T.
        max_seqlen: length of the longest caption, or an upper bound of it.
    """

    ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedTokens:
        self._check()
        ids = self.ids.to(device, non_blocking=non_blocking)
        return PackedTokens(ids, self.cu_seqlens.to(device, non_blocking=non_blocking), self.max_seqlen)

    @property
    def num_captions(self) -> int:
        return self.cu_seqlens.numel() - 1

    @property
    def sequences(self) -> Sequences:
        """The sequence boundaries of the captions, for attention.

        Raises:
            ValueError: `cu_seqlens` is on the CPU and not valid for `ids` and `max_seqlen`.
        """
        self._check()
        return Sequences(
            self.cu_seqlens, (SequenceGroup(self.num_captions, self.ids.numel(), self.max_seqlen, causal=True),)
        )

    def _check(self) -> None:
        """Validates boundaries that are on the CPU, before the captions are moved; on a GPU this would synchronise."""
        if self.cu_seqlens.is_cpu and not torch.compiler.is_compiling():
            check_boundaries(self.cu_seqlens, self.ids.numel(), self.max_seqlen)


def pack(captions: list[list[int]]) -> PackedTokens:
    """Packs captions, each a list of ids that ends with the end-of-text token."""
    lengths = torch.tensor([len(caption) for caption in captions], dtype=torch.int32)
    ids = torch.tensor([token for caption in captions for token in caption], dtype=torch.int64)
    cu_seqlens = torch.zeros(len(captions) + 1, dtype=torch.int32)
    torch.cumsum(lengths, 0, dtype=torch.int32, out=cu_seqlens[1:])
    return PackedTokens(ids, cu_seqlens, int(lengths.max()) if captions else 0)


def pack_padded(input_ids: Tensor, end_of_text: int) -> PackedTokens:
    """Packs padded rows, (n, length); a caption ends at its first end-of-text token.

    Raises:
        ValueError: a row has no end-of-text token.
    """
    is_end = input_ids == end_of_text
    if not bool(is_end.any(dim=1).all()):
        row = int((~is_end.any(dim=1)).nonzero()[0])
        raise ValueError(f"caption {row} of the batch has no end-of-text token (id {end_of_text})")
    lengths = is_end.int().argmax(dim=1) + 1
    keep = torch.arange(input_ids.shape[1], device=input_ids.device) < lengths[:, None]
    cu_seqlens = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=input_ids.device)
    torch.cumsum(lengths, 0, dtype=torch.int32, out=cu_seqlens[1:])
    return PackedTokens(input_ids[keep].long(), cu_seqlens, int(lengths.max()) if len(lengths) else 0)
