"""Captions for benchmarks of training: the built-in data's, tokenised as in a run on that data."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from growclip_ds.data.scenes.composition import compose
from growclip_ds.data.scenes.grammar import describe
from growclip_ds.data.tokens import Tokenizer, train_tokenizer
from growclip_ds.model.packed import PackedTokens

TOKENIZER_CAPTIONS = 2000  # more captions add hardly any words


def built_in_captions(count: int, seed: object = 0) -> list[str]:
    """Captions of the built-in data, 4 to 60 words long; the same for the same seed."""
    rng = Random(f"benchmark/{seed}")
    return [describe(compose(rng), rng) for _ in range(count)]


def built_in_tokenizer(vocab_size: int = 49408, context_length: int = 77) -> Tokenizer:
    """The tokenizer that a run on the built-in data trains; its words do not fill a vocabulary of CLIP's size."""
    return train_tokenizer(built_in_captions(TOKENIZER_CAPTIONS, "tokenizer"), vocab_size, context_length)


def fill(text: PackedTokens, length: int, vocab_size: int) -> PackedTokens:
    """The same number of captions of `length` tokens each: random tokens, followed by the end-of-text token."""
    ids = torch.randint(vocab_size - 1, (text.num_captions, length), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = text.ids[-1]
    cu_seqlens = torch.arange(text.num_captions + 1, dtype=torch.int32) * length
    return PackedTokens(ids.flatten(), cu_seqlens, length)


def pad(text: PackedTokens, length: int) -> Tensor:
    """The captions as rows, (n, length), padded with the end-of-text token."""
    rows = torch.full((text.num_captions, length), int(text.ids[-1]))
    for row, caption in zip(rows, text.ids.split(text.cu_seqlens.diff().tolist()), strict=True):
        row[: caption.numel()] = caption
    return rows
