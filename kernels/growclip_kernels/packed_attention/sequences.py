"""Packed sequences with what the host knows of them, so that nobody has to ask the device, and wait for its answer."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Run:
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
        runs: of all sequences, in their order.
        flags: (B,) booleans, which sequences are causal; None if runs do not differ in that.
    """

    cu_seqlens: Tensor
    runs: tuple[Run, ...]
    flags: Tensor | None = None

    @property
    def tokens(self) -> int:
        return sum(run.tokens for run in self.runs)

    @property
    def max_seqlen(self) -> int:
        return max(run.max_seqlen for run in self.runs)

    @property
    def causal(self) -> bool | Tensor:
        """As `attention` takes it."""
        return self.runs[0].causal if self.flags is None else self.flags

    def followed_by(self, others: Sequences) -> Sequences:
        """These and the others behind them."""
        runs, device = self.runs + others.runs, self.cu_seqlens.device
        flags = None
        if len({run.causal for run in runs}) > 1:
            flags = torch.cat([torch.full((run.sequences,), run.causal, device=device) for run in runs])
        return Sequences(torch.cat([self.cu_seqlens, others.cu_seqlens[1:] + self.tokens]), runs, flags)


def runs_of(cu_seqlens: Tensor, causal: Tensor) -> tuple[Run, ...]:
    """The runs of boundaries (B + 1,) with a flag (B,) each. Waits for the device."""
    ends, flags = cu_seqlens.tolist(), causal.tolist()
    runs = []
    for flag, group in itertools.groupby(range(len(flags)), key=flags.__getitem__):
        lengths = [ends[i + 1] - ends[i] for i in group]
        runs.append(Run(len(lengths), sum(lengths), max(lengths), flag))
    return tuple(runs)
