"""The encoder interface of evaluation, which encodes a batch with every candidate at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growclip_ds.data.pictures import normalise
from growclip_ds.model.packed import PackedTokens

Tokenize = Callable[[list[str]], PackedTokens]  # packs captions, as a `data.tokens.Tokenizer` does


class CandidateEncoder(Protocol):
    """Encodes images and captions with each of several candidates; a single model is the case of one candidate.

    Both methods return one tensor per candidate, (n, e), fp32, L2-normalised, in the order of the candidates.
    Candidates that share a result return the very same tensor object, so that whatever depends on it is computed once;
    which candidates share is the same for every batch. All ranks make the same calls, since the model may be sharded
    over them; n may be 0.
    """

    def images(self, pixels: Tensor) -> list[Tensor]:
        """Features of images, given as uint8 (n, 3, S, S) on the CPU."""
        ...

    def texts(self, tokens: PackedTokens) -> list[Tensor]:
        """Features of n captions, given on the CPU."""
        ...


class ModelEncoder:
    """One model as the only candidate.

    Args:
        model: the model, with methods `encode_image` and `encode_text`; it is put into evaluation mode.
        device: device of the model.
        dtype: dtype of the images that the model takes.
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


class CountingEncoder:
    """An encoder that reports how many images it has encoded.

    Args:
        encoder: the encoder.
        total: number of this rank's images; None if it is not known.
        progress: called with the numbers of images done and to do.
    """

    def __init__(
        self, encoder: CandidateEncoder, total: int | None, progress: Callable[[int, int | None], None]
    ) -> None:
        self._encoder, self._total, self._progress = encoder, total, progress
        self._done = 0
        self.texts = encoder.texts

    def images(self, pixels: Tensor) -> list[Tensor]:
        features = self._encoder.images(pixels)
        self._done += len(pixels)
        self._progress(self._done, self._total)
        return features


def first_sharers(entries: Sequence[Tensor]) -> list[int]:
    """For each entry, the index of the first entry that is the same tensor object."""
    places: dict[int, int] = {}
    return [places.setdefault(id(entry), place) for place, entry in enumerate(entries)]
