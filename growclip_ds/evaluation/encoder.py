"""The encoder interface of evaluation: encodes a batch with every candidate at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growclip_ds.data.pictures import normalise
from growclip_ds.model.packed import PackedTokens


class CandidateEncoder(Protocol):
    """Encodes pictures and captions as each of several candidates; one model is the case of one candidate.

    Both calls return one tensor a candidate, (n, e), fp32, L2-normalised, in the order of the candidates.
    Candidates that share a result hold the very same tensor object, the same candidates in every batch; what follows
    from such a tensor is computed once. Every rank makes the same calls, since the model may be sharded over them;
    n may be 0.
    """

    def images(self, pixels: Tensor) -> list[Tensor]:
        """Pictures, uint8 (n, 3, S, S), on the CPU."""
        ...

    def texts(self, tokens: PackedTokens) -> list[Tensor]:
        """n captions, on the CPU."""
        ...


class ModelEncoder:
    """One model as the only candidate.

    Args:
        model: has `encode_image` and `encode_text`; is put into evaluation mode.
        device: where the model is.
        dtype: what the model takes pictures in.
    """

    def __init__(
        self, model: nn.Module, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.model = model.eval()
        self.device = device
        self.dtype = dtype

    @torch.no_grad()
    def images(self, pixels: Tensor) -> list[Tensor]:
        pixels = pixels.to(self.device, non_blocking=True)
        return [F.normalize(self.model.encode_image(normalise(pixels, self.dtype)).float(), dim=-1)]

    @torch.no_grad()
    def texts(self, tokens: PackedTokens) -> list[Tensor]:
        tokens = tokens.to(self.device, non_blocking=True)
        return [F.normalize(self.model.encode_text(tokens).float(), dim=-1)]


def first_sharers(entries: Sequence[Tensor]) -> list[int]:
    """For each entry, the place of the first one that is the same tensor object."""
    places: dict[int, int] = {}
    return [places.setdefault(id(entry), place) for place, entry in enumerate(entries)]
