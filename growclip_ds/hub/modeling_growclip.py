"""GrowCLIP as a `transformers` model: one architecture, padded captions, CLIP's interface and outputs.

Tensors have the same names and shapes as in a training checkpoint, and the features are the same. There is no dropout,
so training and evaluation mode do not differ.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.utils import can_return_tuple

from .configuration_growclip import GrowCLIPConfig

HEAD_WIDTH = 64
MLP_RATIO = 4
STEM_CHANNELS = 64
NORM_GROUPS = 8
PATCH_SIZE = 8  # of the patch embedding, after a stride-2 convolution
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)


class GrowCLIPConvNorm(nn.Module):
    """GELU(norm(3 × 3 convolution)); the convolution has no bias."""

    def __init__(self, channels_in: int, stride: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels_in, STEM_CHANNELS, 3, stride, padding=1, bias=False)
        self.conv = _drawn(conv, math.sqrt(2 / (9 * channels_in)))
        self.norm = nn.GroupNorm(NORM_GROUPS, STEM_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(x)))


class GrowCLIPStem(nn.Module):
    """A stride-2 convolution, `conv_layers` residual convolutions, and the patch embedding."""

    def __init__(self, conv_layers: int, width: int) -> None:
        super().__init__()
        self.first = GrowCLIPConvNorm(3, stride=2)
        self.layers = nn.ModuleList(GrowCLIPConvNorm(STEM_CHANNELS, stride=1) for _ in range(conv_layers))
        patches = nn.Conv2d(STEM_CHANNELS, width, PATCH_SIZE, PATCH_SIZE, bias=False)
        self.patches = _drawn(patches, (STEM_CHANNELS * PATCH_SIZE**2) ** -0.5)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, S, S) -> (n, patches, d)."""
        x = self.first(images)
        for layer in self.layers:
            x = x + layer(x)
        return self.patches(x).flatten(2).transpose(1, 2)


class GrowCLIPImageEmbedding(nn.Module):
    """Prepends the class token to the patches and adds position embeddings."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(tokens, width))

    def forward(self, patches: Tensor) -> Tensor:
        """(n, P, d) -> (n, P + 1, d)."""
        class_token = self.class_token.expand(patches.shape[0], 1, -1)
        return torch.cat([class_token, patches], dim=1) + self.positions


class GrowCLIPTextEmbedding(nn.Module):
    """Token embeddings plus position embeddings."""

    def __init__(self, vocab_size: int, context_length: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(vocab_size, width))
        self.positions = nn.Parameter(torch.empty(context_length, width))

    def forward(self, input_ids: Tensor) -> Tensor:
        """(n, length) -> (n, length, d)."""
        return F.embedding(input_ids, self.tokens) + self.positions[: input_ids.shape[1]]


class GrowCLIPAttention(nn.Module):
    """Self-attention; rows of the projection are head-major, (heads, 3, 64)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.qkv = _drawn(nn.Linear(width, 3 * width), width**-0.5)
        self.out = _drawn(nn.Linear(width, width), (2 * depth * width) ** -0.5)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """(n, length, d) -> (n, length, d)."""
        qkv = self.qkv(x).unflatten(-1, (-1, 3, HEAD_WIDTH))  # (n, length, H, 3, 64)
        q, k, v = qkv.transpose(1, 2).unbind(3)  # (n, H, length, 64) each
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2))


class GrowCLIPMLP(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.expand = _drawn(nn.Linear(width, MLP_RATIO * width), (2 * width) ** -0.5)
        self.contract = _drawn(nn.Linear(MLP_RATIO * width, width), (2 * depth * width) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(F.gelu(self.expand(x)))


class GrowCLIPBlock(nn.Module):
    """CLIP's transformer block: pre-norm, residual."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = GrowCLIPAttention(width, depth)
        self.mlp = GrowCLIPMLP(width, depth)
        self.mlp_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """(n, length, d) -> (n, length, d)."""
        x = x + self.attention(self.attention_norm(x), causal)
        return x + self.mlp(self.mlp_norm(x))


class GrowCLIPSharedBlock(nn.Module):
    """A block whose weights are shared between the modalities, except the norms. Captions keep causal attention."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.attention_norm = nn.ModuleDict({name: nn.LayerNorm(width) for name in ("image", "text")})
        self.attention = GrowCLIPAttention(width, depth)
        self.mlp = GrowCLIPMLP(width, depth)
        self.mlp_norm = nn.ModuleDict({name: nn.LayerNorm(width) for name in ("image", "text")})

    def forward(self, x: Tensor, modality: str) -> Tensor:
        """(n, length, d) -> (n, length, d)."""
        x = x + self.attention(self.attention_norm[modality](x), causal=modality == "text")
        return x + self.mlp(self.mlp_norm[modality](x))


class GrowCLIPImageEncoder(nn.Module):
    """Stem and transformer."""

    def __init__(self, config: GrowCLIPConfig) -> None:
        super().__init__()
        width = HEAD_WIDTH * config.image_heads
        patches = (config.image_size // (2 * PATCH_SIZE)) ** 2
        self.stem = GrowCLIPStem(config.conv_layers, width)
        self.embedding = GrowCLIPImageEmbedding(patches + 1, width)
        self.blocks = _blocks(GrowCLIPBlock, width, config.image_blocks)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, S, S) -> (n, tokens, d)."""
        x = self.embedding(self.stem(images))
        for block in self.blocks:
            x = block(x, causal=False)
        return x


class GrowCLIPTextEncoder(nn.Module):
    """A causal transformer."""

    def __init__(self, config: GrowCLIPConfig) -> None:
        super().__init__()
        width = HEAD_WIDTH * config.text_heads
        self.embedding = GrowCLIPTextEmbedding(config.vocab_size, config.context_length, width)
        self.blocks = _blocks(GrowCLIPBlock, width, config.text_blocks)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(n, length) -> (n, length, d)."""
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x, causal=True)
        return x


class GrowCLIPSharedEncoder(nn.Module):
    """The encoder of both modalities; the narrower stream is zero-padded to its width."""

    def __init__(self, config: GrowCLIPConfig) -> None:
        super().__init__()
        self.width = HEAD_WIDTH * max(config.image_heads, config.text_heads)
        self.blocks = _blocks(GrowCLIPSharedBlock, self.width, config.shared_blocks)

    def forward(self, x: Tensor, modality: str) -> Tensor:
        """(n, length, d) of a tower -> (n, length, shared width); unchanged if there are no blocks."""
        if self.blocks:
            x = F.pad(x, (0, self.width - x.shape[-1]))
        for block in self.blocks:
            x = block(x, modality)
        return x


class GrowCLIPHead(nn.Module):
    """Final norm and projection of the tokens that represent their sequences."""

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.projection = _drawn(nn.Linear(width, embed_dim, bias=False), width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) -> (n, e), L2-normalised in fp32."""
        features = self.projection(self.norm(x))
        return F.normalize(features.float(), dim=-1).to(features.dtype)


class GrowCLIPModel(PreTrainedModel):
    """A CLIP-like model: image, text and shared encoders, and a learnable temperature.

    The interface is that of `CLIPModel`, but features are returned L2-normalised, as they are compared.
    """

    config_class = GrowCLIPConfig
    base_model_prefix = "growclip"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = [  # their forward uses parameters of several modules
        "GrowCLIPImageEmbedding",
        "GrowCLIPTextEmbedding",
        "GrowCLIPBlock",
        "GrowCLIPSharedBlock",
    ]

    def __init__(self, config: GrowCLIPConfig) -> None:
        super().__init__(config)
        self.logit_scale = nn.Parameter(torch.empty(1))  # a logarithm
        self.image = GrowCLIPImageEncoder(config)
        self.text = GrowCLIPTextEncoder(config)
        self.shared = GrowCLIPSharedEncoder(config)
        widths = [HEAD_WIDTH * heads for heads in (config.image_heads, config.text_heads)]
        if config.shared_blocks:
            widths = [self.shared.width, self.shared.width]
        self.image_head, self.text_head = (GrowCLIPHead(width, config.embed_dim) for width in widths)
        self.post_init()

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """Features of images.

        Args:
            pixel_values: images from the model's image processor, (n, 3, S, S).

        Returns:
            `pooler_output`: the features (n, e), L2-normalised; `last_hidden_state`: the encoder's tokens.

        Raises:
            ValueError: the images do not have the model's image size.
        """
        size = self.config.image_size
        if pixel_values.shape[-2:] != (size, size):
            height, width = pixel_values.shape[-2:]
            raise ValueError(f"images are {height} × {width}, but the model takes {size} × {size}: process them first")
        tokens = self.shared(self.image(pixel_values.to(self.dtype)), "image")
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=self.image_head(tokens[:, 0]))

    @can_return_tuple
    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutputWithPooling:
        """Features of captions.

        Args:
            input_ids: captions from the model's tokenizer, (n, length). A caption ends at its first end-of-text token;
                what follows is padding. One longer than the model's context is truncated, but keeps its end-of-text
                token.
            attention_mask: (n, length), 0 at padding tokens. Only needed for padding on the left.

        Returns:
            `pooler_output`: the features (n, e), L2-normalised; `last_hidden_state`: the encoder's tokens, up to the
            end of the longest caption.

        Raises:
            ValueError: a caption has no end-of-text token.
        """
        input_ids, ends = self._captions(input_ids, attention_mask)
        # Padding needs no mask: attention is causal, so no token of the caption sees what follows its end.
        tokens = self.shared(self.text(input_ids), "text")
        last = tokens[torch.arange(len(ends), device=ends.device), ends]
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=self.text_head(last))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        return_loss: bool | None = None,
    ) -> CLIPOutput:
        """Similarities of images and captions, as `CLIPModel` returns them; logits and loss are in fp32.

        Args:
            input_ids: captions, (m, length); see `get_text_features`.
            pixel_values: images, (n, 3, S, S); see `get_image_features`.
            attention_mask: 0 at padding tokens, (m, length); see `get_text_features`.
            return_loss: whether to return the contrastive loss too, for pairs: n = m.
        """
        images = self.get_image_features(pixel_values, return_dict=True)
        texts = self.get_text_features(input_ids, attention_mask, return_dict=True)
        image_embeds, text_embeds = images.pooler_output, texts.pooler_output
        logits_per_text = self.logit_scale.float().exp() * (text_embeds.float() @ image_embeds.float().T)
        return CLIPOutput(
            loss=_contrastive_loss(logits_per_text) if return_loss else None,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=texts,
            vision_model_output=images,
        )

    def _captions(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Captions that start at position 0, (n, length'), and the positions of their ends, (n,).

        Raises:
            ValueError: a caption has no end-of-text token.
        """
        end_of_text, context_length = self.config.end_of_text, self.config.context_length
        is_end = input_ids == end_of_text
        if attention_mask is not None:
            order = attention_mask.ne(0).logical_not().int().argsort(dim=1, stable=True)  # padding to the right
            input_ids = input_ids.gather(1, order)
            is_end = (is_end & attention_mask.ne(0)).gather(1, order)
        if not bool(is_end.any(dim=1).all()):
            row = int((~is_end.any(dim=1)).nonzero()[0])
            raise ValueError(
                f"caption {row} of the batch has no end-of-text token (id {end_of_text}); the model's own tokenizer "
                "adds it"
            )
        ends = is_end.int().argmax(dim=1)
        if bool((ends >= context_length).any()):
            too_long = (ends >= context_length)[:, None]
            ends = ends.clamp(max=context_length - 1)
            input_ids = input_ids[:, :context_length]
            last = torch.arange(context_length, device=ends.device) == context_length - 1
            input_ids = torch.where(too_long & last, end_of_text, input_ids)
        length = int(ends.max()) + 1 if len(ends) else 0
        return input_ids[:, :length], ends

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialises a new model's weights as training does, with CLIP's standard deviations."""
        init = nn.init
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            init.normal_(module.weight, std=module.initial_deviation)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, GrowCLIPImageEmbedding):
            init.normal_(module.class_token, std=module.class_token.numel() ** -0.5)
            init.normal_(module.positions, std=module.class_token.numel() ** -0.5)
        elif isinstance(module, GrowCLIPTextEmbedding):
            init.normal_(module.tokens, std=0.02)
            init.normal_(module.positions, std=0.01)
        elif isinstance(module, GrowCLIPModel):
            init.constant_(module.logit_scale, INITIAL_LOGIT_SCALE)


def _contrastive_loss(logits: Tensor) -> Tensor:
    """Mean of the cross-entropies in both directions, for n pairs: (n, n) -> ()."""
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def _drawn(layer: nn.Module, deviation: float) -> nn.Module:
    """Attaches the standard deviation of its initial weights to a layer, and returns the layer."""
    layer.initial_deviation = deviation
    return layer


def _blocks(kind: type[nn.Module], width: int, depth: int) -> nn.ModuleList:
    return nn.ModuleList(kind(width, depth) for _ in range(depth))
