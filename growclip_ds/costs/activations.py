"""Activation memory of a micro-batch for each part of the model. No torch.

The figures are for the Triton kernels: attention stores its input, its output and one number per token and head. They
count all that a layer's backward pass reads, but not what is merely passed on to the next layer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from growclip_ds.architecture import HEAD_WIDTH, MLP_RATIO, STEM_CHANNELS, Architecture, ModelSizes
from growclip_ds.config.sections import ActivationCheckpointing

FP32 = 4
_STATISTICS = 2 * FP32  # mean and deviation that a norm keeps per row
_KEPT = 1 + 1 + 3 + 1 + 1 + 1 + 2 * MLP_RATIO  # widths per token: input, norm, qkv, attention, sum, norm, inside MLP
_IN_FLIGHT = 1 + MLP_RATIO  # in a block's backward pass: gradients of its output and of the MLP's hidden layer
_STEM_KEPT, _STEM_IN_FLIGHT = 3, 1  # convolution, norm and output; two gradients in place of that output


@dataclass(frozen=True)
class Part:
    """A part of the model that the forward pass runs as a whole.

    Attributes:
        name: the part's name.
        kept: bytes that it keeps for its backward pass.
        in_flight: bytes that its backward pass needs beyond what is kept.
        elements: number of its parameters.
    """

    name: str
    kept: float
    in_flight: float
    elements: int


def parts(
    architecture: Architecture,
    sizes: ModelSizes,
    pairs: int,
    text_tokens: float,
    element: int,
    checkpointing: ActivationCheckpointing = "off",
) -> list[Part]:
    """Lists the model's parts in the order of its forward pass.

    Args:
        architecture: the architecture that runs.
        sizes: sizes of its input and embedding space.
        pairs: image-text pairs per micro-batch.
        text_tokens: mean tokens per caption.
        element: bytes per element.
        checkpointing: activation checkpointing of the blocks.
    """
    image, text = pairs * sizes.image_tokens, pairs * text_tokens
    elements = _elements(architecture, sizes)
    found = list(_stem(architecture, sizes, pairs, element, elements))
    for tower, blocks, tokens, width in (
        ("image", architecture.image_blocks, image, architecture.image_width),
        ("text", architecture.text_blocks, text, architecture.text_width),
        ("shared", architecture.shared_blocks, image + text, architecture.shared_width),
    ):
        if tower == "text":
            # The gradient of the whole embedding: once as it is made, and once as it is added to that of a slice.
            table = element * sizes.vocab_size * width
            found.append(Part("text.embedding", 0, 2 * table, elements["text.embedding"]))
        for block in range(blocks):
            name = f"{tower}.blocks.{block}"
            found.append(_block(name, tokens, width, element, elements[name], checkpointing))
    # Heads keep the stream from which they take one token per sequence; those of captions are copied out of it.
    stream = (image + text if architecture.shared_blocks else image) * architecture.image_output_width
    width = architecture.image_output_width + architecture.text_output_width
    heads = element * (stream + pairs * (2 * width + 4 * sizes.embed_dim))
    found.append(Part("heads", heads, element * stream, elements["heads"]))
    return found


def _stem(
    architecture: Architecture, sizes: ModelSizes, pairs: int, element: int, elements: dict[str, int]
) -> Iterator[Part]:
    layer = element * pairs * STEM_CHANNELS * (sizes.image_size // 2) ** 2
    tokens = element * pairs * sizes.image_tokens * architecture.image_width
    for index in range(architecture.conv_layers + 1):
        name = f"image.stem.layers.{index - 1}" if index else "image.stem.first"
        yield Part(name, _STEM_KEPT * layer, _STEM_IN_FLIGHT * layer, elements[name])
    yield Part("image.stem.patches", 0, tokens + layer, elements["image.stem.patches"])
    yield Part("image.embedding", 0, 2 * tokens, elements["image.embedding"])


def _block(
    name: str, tokens: float, width: int, element: int, elements: int, checkpointing: ActivationCheckpointing
) -> Part:
    heads = width // HEAD_WIDTH
    kept = element * _KEPT * tokens * width + tokens * (2 * _STATISTICS + FP32 * heads)
    in_flight = element * _IN_FLIGHT * tokens * width
    if checkpointing == "off":
        return Part(name, kept, in_flight, elements)
    # A checkpointed block keeps only its input; everything inside exists again while its backward pass runs.
    entered = element * tokens * width
    return Part(name, 0 if checkpointing == "offload" else entered, kept + in_flight, elements)


def _elements(architecture: Architecture, sizes: ModelSizes) -> dict[str, int]:
    """Number of parameters of each part, by name."""
    counts: dict[str, int] = {"heads": 0}
    for name, shape in architecture.parameter_shapes(sizes).items():
        pieces = name.split(".")
        part = "heads"
        if "blocks" in pieces or "layers" in pieces:
            index = next(place for place, piece in enumerate(pieces) if piece.isdecimal())
            part = ".".join(pieces[: index + 1])
        elif pieces[0] in ("image", "text"):
            part = ".".join(pieces[: 3 if pieces[1] == "stem" else 2])
        counts[part] = counts.get(part, 0) + math.prod(shape)
    return counts


def total_kept(found: list[Part]) -> float:
    """Bytes that all parts keep for the backward pass: the memory reported as activations."""
    return sum(part.kept for part in found)


def moments(found: list[Part]) -> Iterator[tuple[Part, float, int]]:
    """Steps through the backward pass: each part, bytes of activations while it runs, and elements that have gradients.

    The elements include the part's own.
    """
    kept = list(itertools.accumulate(part.kept for part in found))
    done = 0
    for part, alive in zip(reversed(found), reversed(kept), strict=True):
        done += part.elements
        yield part, alive + part.in_flight, done
