"""Packed sequences to attend, softmax attention written out in float64, and the distance from it."""

from __future__ import annotations

import torch
from torch import Tensor

LENGTHS = [1, 2, 15, 16, 17, 50, 63, 64, 65, 77, 128, 197, 200, 256, 257, 577]


def packed(lengths: list[int], heads: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """qkv (T, heads, 3, 64) that wants a gradient, and cu_seqlens."""
    generator = torch.Generator().manual_seed(sum(lengths) + heads)
    qkv = torch.randn(sum(lengths), heads, 3, 64, dtype=torch.float64, generator=generator)
    return qkv.to(dtype).requires_grad_(), boundaries(lengths)


def boundaries(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def reference(qkv: Tensor, lengths: list[int], causal: list[bool]) -> Tensor:
    """(T, H, 3, 64) -> (T, H, 64), a sequence at a time."""
    outputs, start = [], 0
    for length, masked in zip(lengths, causal, strict=True):
        q, k, v = qkv[start : start + length].unbind(2)  # (L, H, 64) each
        scores = torch.einsum("qhd,khd->hqk", q, k) / 8
        if masked:
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
        start += length
    return torch.cat(outputs)


def worst_error(ours: Tensor, exact: Tensor, lengths: list[int]) -> float:
    """The largest relative distance (L2) of any sequence's part, (T, ...) both; not a number where any element is."""
    parts = zip(ours.double().split(lengths), exact.split(lengths), strict=True)
    return max(float((a - b).norm() / b.norm()) if torch.isfinite(a).all() else float("nan") for a, b in parts)
