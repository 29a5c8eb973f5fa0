"""Packed sequences with what the host knows of them, so that nobody has to ask the device, and wait for its answer."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

HEAD_WIDTH = 64  # elements of a head's query, key or value


class SequenceGroup(NamedTuple):
    """Neighbouring sequences of one causality.

    Attributes:
        sequences: how many.
        tokens: of all of them.
        max_seqlen: length of the longest, or an upper bound of it.
        causal: whether a token sees only itself and those before it.
    """

    sequences: int
    tokens: int
    max_seqlen: int
    causal: bool


@dataclass(frozen=True, eq=False)
class Sequences:
    """T tokens of B sequences, end to end. Whoever makes one answers for it: its boundaries are not looked at.

    Attributes:
        cu_seqlens: (B + 1,) int32, where sequences begin and end: starts with 0, ends with T.
        groups: of all sequences, in their order.
    """

    cu_seqlens: Tensor
    groups: tuple[SequenceGroup, ...]

    @property
    def tokens(self) -> int:
        return sum(group.tokens for group in self.groups)

    def followed_by(self, others: Sequences) -> Sequences:
        """These and the others behind them."""
        return Sequences(torch.cat([self.cu_seqlens, others.cu_seqlens[1:] + self.tokens]), self.groups + others.groups)


def groups_of(cu_seqlens: Tensor, causal: Tensor) -> tuple[SequenceGroup, ...]:
    """The groups of boundaries (B + 1,) with a flag (B,) each. Waits for the device."""
    ends, flags = cu_seqlens.tolist(), causal.tolist()
    groups = []
    for flag, members in itertools.groupby(range(len(flags)), key=flags.__getitem__):
        lengths = [ends[i + 1] - ends[i] for i in members]
        groups.append(SequenceGroup(len(lengths), sum(lengths), max(lengths), flag))
    return tuple(groups)
