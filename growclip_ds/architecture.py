"""Architectures: six integers, and everything that follows from them.

Does not use torch: candidates are listed, compared and counted without building a model. The layout is the one that
reproduces the parameter counts of the paper's Tables 3, 5, 8 and 9.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields

HEAD_WIDTH = 64
MLP_RATIO = 4
STEM_CHANNELS = 64
PATCH_SIZE = 8  # of the patch embedding, after a stride-2 convolution
STEM_STRIDE = 2 * PATCH_SIZE

Shape = tuple[int, ...]


@dataclass(frozen=True, order=True)
class ModelSizes:
    """The sizes that do not grow: those of the input and of the embedding space.

    Attributes:
        vocab_size: number of tokens in the vocabulary.
        context_length: maximum number of tokens per caption, start and end of text included.
        image_size: side of the square images in pixels; a multiple of 16, except for a CLIP with another patch size.
        embed_dim: width of the embedding space in which images and captions are compared.
    """

    vocab_size: int = 49408
    context_length: int = 77
    image_size: int = 224
    embed_dim: int = 512

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{field.name} must be a positive integer, not {value!r}")

    @property
    def image_tokens(self) -> int:
        """Number of tokens per image: its patches and the class token.

        Raises:
            ValueError: the image size is not a multiple of the patch size in pixels.
        """
        if self.image_size % STEM_STRIDE:
            raise ValueError(f"image_size must be a multiple of {STEM_STRIDE}, not {self.image_size}")
        return (self.image_size // STEM_STRIDE) ** 2 + 1

    def parameters_of(self, architecture: Architecture) -> int:
        """Number of parameters of a model with these sizes, without the temperature."""
        return architecture.num_parameters(*astuple(self))


@dataclass(frozen=True, order=True)
class Architecture:
    """One candidate of the growth space (Section 3.2, Table 2).

    Attributes:
        conv_layers: l^I, convolutional layers of the image stem beyond its first.
        image_blocks: b^I, transformer blocks of the image encoder.
        image_heads: h^I, attention heads of the image encoder; its width is 64 per head.
        text_blocks: b^T, transformer blocks of the text encoder.
        text_heads: h^T, attention heads of the text encoder; its width is 64 per head.
        shared_blocks: b^S, transformer blocks that both modalities pass through.
    """

    conv_layers: int
    image_blocks: int
    image_heads: int
    text_blocks: int
    text_heads: int
    shared_blocks: int

    def __post_init__(self) -> None:
        for name, value in self.items():
            least = 1 if name.endswith("heads") else 0
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")

    def __str__(self) -> str:
        return f"({', '.join(map(str, astuple(self)))})"

    def items(self) -> Iterator[tuple[str, int]]:
        return ((field.name, getattr(self, field.name)) for field in fields(self))

    @property
    def image_width(self) -> int:
        return HEAD_WIDTH * self.image_heads

    @property
    def text_width(self) -> int:
        return HEAD_WIDTH * self.text_heads

    @property
    def shared_width(self) -> int:
        """Width of the shared encoder: that of the wider stream; the narrower one is zero-padded."""
        return max(self.image_width, self.text_width)

    @property
    def image_output_width(self) -> int:
        """Width of the image stream at its head."""
        return self.shared_width if self.shared_blocks else self.image_width

    @property
    def text_output_width(self) -> int:
        """Width of the text stream at its head."""
        return self.shared_width if self.shared_blocks else self.text_width

    def covers(self, other: Architecture) -> bool:
        """Whether this architecture is at least as large as the other in every dimension."""
        return all(mine >= theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True))

    def parameter_shapes(self, sizes: ModelSizes) -> dict[str, Shape]:
        """The shape of every parameter of the model by name, in the model's own order.

        A candidate's tensors are leading slices of a larger candidate's tensors of the same names.
        """
        shapes: dict[str, Shape] = {"logit_scale": (1,)}
        shapes |= {f"image.stem.{name}": shape for name, shape in _stem(self.conv_layers, self.image_width)}
        shapes |= {
            "image.embedding.class_token": (self.image_width,),
            "image.embedding.positions": (sizes.image_tokens, self.image_width),
        }
        for block in range(self.image_blocks):
            shapes |= {f"image.blocks.{block}.{name}": shape for name, shape in _block(self.image_width)}
        shapes |= {
            "text.embedding.tokens": (sizes.vocab_size, self.text_width),
            "text.embedding.positions": (sizes.context_length, self.text_width),
        }
        for block in range(self.text_blocks):
            shapes |= {f"text.blocks.{block}.{name}": shape for name, shape in _block(self.text_width)}
        for block in range(self.shared_blocks):
            shapes |= {f"shared.blocks.{block}.{name}": shape for name, shape in _shared_block(self.shared_width)}
        for head, width in (("image_head", self.image_output_width), ("text_head", self.text_output_width)):
            shapes |= {f"{head}.{name}": shape for name, shape in _norm("norm", width)}
            shapes[f"{head}.projection.weight"] = (sizes.embed_dim, width)
        return shapes

    def num_parameters(
        self, vocab_size: int = 49408, context_length: int = 77, image_size: int = 224, embed_dim: int = 512
    ) -> int:
        """Number of parameters of the model, without the temperature, as the paper counts them."""
        sizes = ModelSizes(vocab_size, context_length, image_size, embed_dim)
        shapes = self.parameter_shapes(sizes)
        return sum(math.prod(shape) for name, shape in shapes.items() if name != "logit_scale")


Shapes = Iterator[tuple[str, Shape]]


def _norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _linear(name: str, width_out: int, width_in: int) -> Shapes:
    yield f"{name}.weight", (width_out, width_in)
    yield f"{name}.bias", (width_out,)


def _stem(conv_layers: int, width: int) -> Shapes:
    yield "first.conv.weight", (STEM_CHANNELS, 3, 3, 3)
    yield from _norm("first.norm", STEM_CHANNELS)
    for layer in range(conv_layers):
        yield f"layers.{layer}.conv.weight", (STEM_CHANNELS, STEM_CHANNELS, 3, 3)
        yield from _norm(f"layers.{layer}.norm", STEM_CHANNELS)
    yield "patches.weight", (width, STEM_CHANNELS, PATCH_SIZE, PATCH_SIZE)


def _block(width: int) -> Shapes:
    yield from _norm("attention_norm", width)
    yield from _attention_and_mlp(width)
    yield from _norm("mlp_norm", width)


def _shared_block(width: int) -> Shapes:
    for modality in ("image", "text"):
        yield from _norm(f"attention_norm.{modality}", width)
    yield from _attention_and_mlp(width)
    for modality in ("image", "text"):
        yield from _norm(f"mlp_norm.{modality}", width)


def _attention_and_mlp(width: int) -> Shapes:
    # Rows of qkv are head-major, (heads, 3, 64): the first h heads are the leading rows.
    yield from _linear("attention.qkv", 3 * width, width)
    yield from _linear("attention.out", width, width)
    yield from _linear("mlp.expand", MLP_RATIO * width, width)
    yield from _linear("mlp.contract", width, MLP_RATIO * width)
