"""Packed sequences together with what the host knows about them, so that nothing has to synchronise with the device."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

HEAD_WIDTH = 64  # elements of a head's query, key or value


class SequenceGroup(NamedTuple):
    """Consecutive sequences that are all causal or all bidirectional.

    Attributes:
        sequences: number of sequences.
        tokens: total number of tokens.
        max_seqlen: length of the longest sequence, or an upper bound of it.
        causal: whether a token attends only to itself and earlier tokens.
    """

    sequences: int
    tokens: int
    max_seqlen: int
    causal: bool


@dataclass(frozen=True, eq=False)
class Sequences:
    """The boundaries of B sequences of T tokens in total, packed end to end. The caller guarantees that they are valid.

    Attributes:
        cu_seqlens: (B + 1,) int32, the cumulative sequence lengths, from 0 to T.
        groups: the sequences in groups, in order.
    """

    cu_seqlens: Tensor
    groups: tuple[SequenceGroup, ...]

    @property
    def tokens(self) -> int:
        return sum(group.tokens for group in self.groups)

    def followed_by(self, others: Sequences) -> Sequences:
        """The concatenation of these sequences and `others`."""
        return Sequences(torch.cat([self.cu_seqlens, others.cu_seqlens[1:] + self.tokens]), self.groups + others.groups)


def groups_of(cu_seqlens: Tensor, causal: Tensor) -> tuple[SequenceGroup, ...]:
    """The groups of sequences with boundaries (B + 1,) and causal flags (B,). Synchronises with the device."""
    ends, flags = cu_seqlens.tolist(), causal.tolist()
    groups = []
    for flag, members in itertools.groupby(range(len(flags)), key=flags.__getitem__):
        lengths = [ends[i + 1] - ends[i] for i in members]
        groups.append(SequenceGroup(len(lengths), sum(lengths), max(lengths), flag))
    return tuple(groups)
