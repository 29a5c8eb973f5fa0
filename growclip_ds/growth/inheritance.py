"""Parameter inheriting with momentum (PIM, Section 3.3): the weights a grown model starts from.

Tensors are processed one at a time (read the old one, blend, hand it on), so a model is never in memory twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from growclip_ds.architecture import Architecture, ModelSizes, Shape
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.model.initial import initial_tensor, is_vector
from growclip_ds.model.layers import leading_slice

CHUNK = 1 << 18  # elements blended at a time

STACKS = {
    "image.stem.layers": "conv_layers",
    "image.blocks": "image_blocks",
    "text.blocks": "text_blocks",
    "shared.blocks": "shared_blocks",
}


@dataclass(frozen=True)
class PIM:
    """The constants of parameter inheriting with momentum.

    Attributes:
        beta: β, the factor of the old weights.
        gamma: γ, the factor of the random weights.
        fresh: scale of random weights where the old model has none (new heads, channels and embeddings).
        blend_vectors: whether norms, biases and the temperature are blended too, with their initial values as the
            random weights, instead of being copied.
    """

    beta: float = 0.3
    gamma: float = 0.001
    fresh: float = 1.0
    blend_vectors: bool = False

    def blend(self, old: Tensor, drawn: Tensor, vector: bool) -> Tensor:
        """ω = β · ω_old + γ · ω_rand (Eq. 5 and 8); a vector stays ω_old, unless `blend_vectors` is set."""
        if vector and not self.blend_vectors:
            return old
        return self.beta * old + self.gamma * drawn

    def left_out(self) -> PIM:
        """The ablation of momentum: old weights are neither scaled nor perturbed (Table 5)."""
        return replace(self, beta=1.0, gamma=0.0)


def inherited_tensor(
    name: str,
    shape: Shape,
    old: Architecture,
    new: Architecture,
    read: Callable[[str], Tensor],
    pim: PIM,
    seed: int | str,
) -> Tensor:
    """One tensor of the grown model, in fp32 on the CPU.

    Args:
        name: name of the tensor in the new model.
        shape: its shape in the new model.
        old: the architecture to grow from.
        new: the architecture to grow to.
        read: returns a tensor of the old model by name; larger ones (a supernet's) are cut to the new shape.
        pim: how old and random weights are blended.
        seed: seed of the random weights, combined with the name.
    """
    vector = is_vector(name)
    fresh = 1.0 if vector else pim.fresh
    grown = initial_tensor(name, shape, new, seed)
    source = _source_name(name, old, new)
    if source is None:
        return grown.mul_(fresh)
    inherited = read(source)
    common = tuple(map(min, inherited.shape, shape))
    grown[common[0] :].mul_(fresh)
    # In blocks of rows, so that a tensor is in memory twice, old and new, and not four times.
    rows = max(1, CHUNK * shape[0] // math.prod(shape))
    old_rows = leading_slice(inherited, common).split(rows)
    for drawn, source_rows in zip(grown[: common[0]].split(rows), old_rows, strict=True):
        overlap = leading_slice(drawn, tuple(source_rows.shape))
        blended = pim.blend(source_rows.to(drawn), overlap, vector)
        drawn.mul_(fresh)
        overlap.copy_(blended)
    return grown


def inherited_tensors(
    old: Architecture,
    new: Architecture,
    sizes: ModelSizes,
    read: Callable[[str], Tensor],
    pim: PIM,
    seed: int | str,
) -> Iterator[tuple[str, Tensor]]:
    """Yields every tensor of the grown model with its name, one at a time, in the order of `parameter_shapes`."""
    for name, shape in new.parameter_shapes(sizes).items():
        yield name, inherited_tensor(name, shape, old, new, read, pim, seed)


def inherit(
    old_model: GrowCLIP, architecture: Architecture, beta: float = 0.3, gamma: float = 0.001, seed: int = 0
) -> GrowCLIP:
    """A model of a larger or equal architecture, initialised from the old one (Eq. 5 and 8), with its dtype and device.

    Added layers copy the last ones; rows of new heads and channels are random, at full scale; norms, biases and the
    temperature are copied.

    Raises:
        ValueError: the architecture is smaller than the old model's in some dimension.
    """
    if not architecture.covers(old_model.architecture):
        raise ValueError(
            f"a model can only grow, but {architecture} is smaller than {old_model.architecture} in some dimension"
        )
    weights = dict(old_model.named_parameters())
    model = old_model.empty_like(architecture).to(old_model.logit_scale)
    with torch.no_grad():
        tensors = inherited_tensors(
            old_model.architecture, architecture, model.sizes, weights.__getitem__, PIM(beta, gamma), seed
        )
        model.load_tensors(dict(tensors))
    return model


def _source_name(name: str, old: Architecture, new: Architecture) -> str | None:
    """The name of the old model's tensor that a tensor inherits from; None if there is none.

    Of k added layers, each inherits from the layer k before it: they copy the last k in order. A stack of fewer than k
    layers is repeated.
    """
    for stack, dimension in STACKS.items():
        if name.startswith(stack + "."):
            index, _, rest = name.removeprefix(stack + ".").partition(".")
            depth, added = getattr(old, dimension), getattr(new, dimension) - getattr(old, dimension)
            layer = int(index)
            if layer >= depth:
                if depth == 0:
                    return None
                layer = layer - added if added <= depth else (layer - depth) % depth
            return f"{stack}.{layer}.{rest}"
    return name
