"""Every candidate's features from the supernet's weights, for growth architecture selection (Section 3.4).

Candidates with the same leading layers share their computation: all 64 cost a few passes over the images, not 64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growclip_ds.architecture import HEAD_WIDTH, Architecture
from growclip_ds.data.pictures import normalise
from growclip_ds.model.encoders import Head, SharedEncoder
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.model.packed import PackedTokens
from growclip_kernels.packed_attention import Sequences


class SupernetEncoder:
    """Encodes images and captions with every candidate, from the supernet's weights and with shared prefixes.

    A `CandidateEncoder` for `growclip_ds.evaluation`. Features that several candidates have in common are one tensor
    object in the lists returned.

    Args:
        model: the supernet, or a model that is its own only candidate. It may be sharded by ZeRO 3, so all ranks make
            the same calls.
        candidates: the architectures to evaluate, each covered by the model.
    """

    def __init__(self, model: GrowCLIP, candidates: Sequence[Architecture]) -> None:
        self.model = model
        self.candidates = candidates

    @torch.no_grad()
    def images(self, pixels: Tensor) -> list[Tensor]:
        """Pixels (n, 3, S, S) uint8 -> (n, e) fp32 for each candidate."""
        model, encoder = self.model, self.model.image
        images = normalise(pixels.to(model.logit_scale.device), model.logit_scale.dtype)
        sequences = model.image_sequences(images)
        run, run_shared = _through_block(sequences), _through_shared_block("image", sequences)
        features: dict[Architecture, Tensor] = {}
        trunk = encoder.stem.first(images)
        for some, x in _exits(encoder.stem.layers, trunk, self.candidates, "conv_layers", lambda f, x: x + f(x)):
            for heads, same in _group(some, "image_heads"):
                tokens = encoder.embedding(encoder.stem.patches(x, heads * HEAD_WIDTH))
                for deep, stream in _exits(encoder.blocks, tokens, same, "image_blocks", run):
                    features |= _finish(deep, stream, model.shared, run_shared, model.class_tokens, model.image_head)
        return [features[candidate] for candidate in self.candidates]

    @torch.no_grad()
    def texts(self, tokens: PackedTokens) -> list[Tensor]:
        """n captions -> (n, e) fp32 for each candidate."""
        model, encoder = self.model, self.model.text
        text = tokens.to(model.logit_scale.device)
        sequences = text.sequences
        run, run_shared = _through_block(sequences), _through_shared_block("text", sequences)
        pick = partial(model.last_tokens, text=text)
        features: dict[Architecture, Tensor] = {}
        for heads, same in _group(self.candidates, "text_heads"):
            embedded = encoder.embedding(text, heads * HEAD_WIDTH)
            for deep, stream in _exits(encoder.blocks, embedded, same, "text_blocks", run):
                features |= _finish(deep, stream, model.shared, run_shared, pick, model.text_head)
        return [features[candidate] for candidate in self.candidates]


Layer = Callable[[nn.Module, Tensor], Tensor]


def _through_block(sequences: Sequences) -> Layer:
    return lambda block, x: block(x, sequences)


def _through_shared_block(modality: str, sequences: Sequences) -> Layer:
    return lambda block, x: block(x, {modality: x.shape[0]}, sequences)


def _group(candidates: Iterable[Architecture], dimension: str) -> list[tuple[int, list[Architecture]]]:
    """Groups the candidates by their value in one dimension, smallest first."""
    groups: dict[int, list[Architecture]] = {}
    for candidate in sorted(candidates, key=attrgetter(dimension)):
        groups.setdefault(getattr(candidate, dimension), []).append(candidate)
    return list(groups.items())


def _exits(
    layers: nn.ModuleList, x: Tensor, candidates: Iterable[Architecture], dimension: str, run: Layer
) -> Iterator[tuple[list[Architecture], Tensor]]:
    """Runs the layers once, and yields, at each depth where candidates end, these candidates and the stream."""
    done = 0
    for depth, leaving in _group(candidates, dimension):
        for layer in layers[done:depth]:
            x = run(layer, x)
        done = depth
        yield leaving, x


def _finish(
    candidates: list[Architecture],
    stream: Tensor,
    shared: SharedEncoder,
    run: Layer,
    pick: Callable[[Tensor], Tensor],
    head: Head,
) -> dict[Architecture, Tensor]:
    """The features (n, e) of candidates that share the output of a tower, `stream`, (T, d)."""
    features: dict[Architecture, Tensor] = {}
    alone = [candidate for candidate in candidates if not candidate.shared_blocks]
    if alone:
        features |= dict.fromkeys(alone, _features(head, pick(stream)))
    entering = [candidate for candidate in candidates if candidate.shared_blocks]
    for width, same in _group(entering, "shared_width"):
        entered = GrowCLIP.enter_shared(stream, width)
        for deep, x in _exits(shared.blocks, entered, same, "shared_blocks", run):
            features |= dict.fromkeys(deep, _features(head, pick(x)))
    return features


def _features(head: Head, x: Tensor) -> Tensor:
    return F.normalize(head(x).float(), dim=-1)  # again: in low precision the head rounds its normalised output
