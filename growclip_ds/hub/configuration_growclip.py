"""Configuration of a GrowCLIP model in Hugging Face format."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class GrowCLIPConfig(PretrainedConfig):
    """Configuration of a `GrowCLIPModel`.

    Args:
        conv_layers: l^I, convolutional layers of the image stem beyond its first.
        image_blocks: b^I, transformer blocks of the image encoder.
        image_heads: h^I, attention heads of the image encoder; its width is 64 per head.
        text_blocks: b^T, transformer blocks of the text encoder.
        text_heads: h^T, attention heads of the text encoder; its width is 64 per head.
        shared_blocks: b^S, transformer blocks that both modalities pass through.
        vocab_size: number of tokens in the vocabulary.
        context_length: maximum number of tokens per caption, start and end of text included.
        image_size: side of the square images in pixels, a multiple of 16.
        embed_dim: width of the embedding space in which images and captions are compared.
        end_of_text: id of the token whose feature represents the caption; the largest id of the vocabulary if None.
        growth: the model's growth steps, each with its number, architecture, parameters and samples; empty if unknown.
    """

    model_type = "growclip"

    def __init__(
        self,
        conv_layers: int = 0,
        image_blocks: int = 6,
        image_heads: int = 6,
        text_blocks: int = 6,
        text_heads: int = 4,
        shared_blocks: int = 0,
        vocab_size: int = 49408,
        context_length: int = 77,
        image_size: int = 224,
        embed_dim: int = 512,
        end_of_text: int | None = None,
        growth: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        self.conv_layers = conv_layers
        self.image_blocks = image_blocks
        self.image_heads = image_heads
        self.text_blocks = text_blocks
        self.text_heads = text_heads
        self.shared_blocks = shared_blocks
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.image_size = image_size
        self.embed_dim = embed_dim
        self.end_of_text = vocab_size - 1 if end_of_text is None else end_of_text
        self.growth = [] if growth is None else growth
        super().__init__(**kwargs)
