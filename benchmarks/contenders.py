"""Other libraries' CLIPs at the size of a GrowCLIP, each as a module that maps a batch to its own contrastive loss.

Their captions are rows of the full context length, without a mask: attention is causal and the feature is taken at the
first end-of-text token, so the padding after it costs time but changes nothing. With several ranks, each contrasts only
its own batch, which is these libraries' default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from growclip_ds.architecture import HEAD_WIDTH, STEM_STRIDE, Architecture, ModelSizes
from growclip_ds.distributed import is_main


@dataclass(frozen=True)
class Contender:
    """A library's CLIP.

    Attributes:
        name: name of the library and of its model.
        build: creates the module, with the library's own initial weights.
        parts: names of the submodules whose forward passes are timed, by the name of the part.
    """

    name: str
    build: Callable[[], nn.Module]
    parts: dict[str, str]


class TransformersClip(nn.Module):
    """`transformers`' CLIPModel with its own loss and attention by scaled_dot_product_attention.

    It uses GELU instead of QuickGELU, which takes three operators, each a pass over the widest activations.
    """

    def __init__(self, architecture: Architecture, sizes: ModelSizes, end_of_text: int) -> None:
        from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

        super().__init__()
        text = CLIPTextConfig(
            vocab_size=sizes.vocab_size,
            hidden_size=architecture.text_width,
            intermediate_size=4 * architecture.text_width,
            num_hidden_layers=architecture.text_blocks,
            num_attention_heads=architecture.text_heads,
            hidden_act="gelu",
            max_position_embeddings=sizes.context_length,
            pad_token_id=end_of_text,
            bos_token_id=end_of_text - 1,
            eos_token_id=end_of_text,
        )
        vision = CLIPVisionConfig(
            hidden_size=architecture.image_width,
            intermediate_size=4 * architecture.image_width,
            num_hidden_layers=architecture.image_blocks,
            num_attention_heads=architecture.image_heads,
            hidden_act="gelu",
            image_size=sizes.image_size,
            patch_size=STEM_STRIDE,
        )
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=sizes.embed_dim)
        config._attn_implementation = "sdpa"
        self.clip = CLIPModel(config)
        self.clip.logit_scale = nn.Parameter(torch.full((1,), config.logit_scale_init_value))  # ZeRO takes no scalars

    def forward(self, images: Tensor, input_ids: Tensor) -> Tensor:
        """(n, 3, S, S) and (n, length) -> the loss."""
        return self.clip(input_ids=input_ids, pixel_values=images, return_loss=True).loss.squeeze()


class OpenClip(nn.Module):
    """open_clip's CLIP with its ClipLoss, and with GELU instead of QuickGELU, as in its own ViT-B-16."""

    def __init__(self, architecture: Architecture, sizes: ModelSizes) -> None:
        import open_clip

        super().__init__()
        vision = {
            "image_size": sizes.image_size,
            "layers": architecture.image_blocks,
            "width": architecture.image_width,
            "head_width": HEAD_WIDTH,
            "patch_size": STEM_STRIDE,
        }
        text = {  # the feature is taken at the largest id, which is the end of text
            "context_length": sizes.context_length,
            "vocab_size": sizes.vocab_size,
            "width": architecture.text_width,
            "heads": architecture.text_heads,
            "layers": architecture.text_blocks,
        }
        self.clip = open_clip.CLIP(sizes.embed_dim, vision, text, nonscalar_logit_scale=True)
        self.loss = open_clip.ClipLoss()

    def forward(self, images: Tensor, input_ids: Tensor) -> Tensor:
        """(n, 3, S, S) and (n, length) -> the loss."""
        return self.loss(*self.clip(images, input_ids)).squeeze()


def find_contenders(architecture: Architecture, sizes: ModelSizes, end_of_text: int) -> list[Contender]:
    """The contenders that can be imported; for any other, rank 0 prints why not."""
    found = [
        Contender(
            "transformers CLIPModel",
            lambda: TransformersClip(architecture, sizes, end_of_text),
            {"image encoder": "clip.vision_model", "text encoder": "clip.text_model"},
        )
    ]
    try:
        import open_clip  # noqa: F401
    except ImportError as error:
        if is_main():
            print(f"skipping open_clip, which cannot be imported: {error}")
    else:
        parts = {"image encoder": "clip.visual", "text encoder": "clip.transformer"}
        found.append(Contender("open_clip CLIP", lambda: OpenClip(architecture, sizes), parts))
    return found
