"""The baselines' fixed model: `transformers`' CLIP behind the interface that training and evaluation use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPTextModel, CLIPVisionModel
from transformers.models.clip.modeling_clip import CLIPTextEmbeddings

from growclip_ds.architecture import HEAD_WIDTH, MLP_RATIO, STEM_STRIDE, Architecture, ModelSizes
from growclip_ds.errors import InputError
from growclip_ds.model.packed import PackedTokens

_OLD_END_OF_TEXT = 2  # in configurations from before transformers 4.31; `CLIPModel` takes it as "the largest id"


class FixedCLIP(nn.Module):
    """A `CLIPModel` that takes packed captions and returns features and the logit scale, as `GrowCLIP` does.

    Parameters have the same names as in `CLIPModel`. The temperature has shape (1,), since DeepSpeed does not support
    scalars. `CLIPModel` does not support empty batches: one dummy sample is encoded instead and its features dropped,
    since in training every rank must produce gradients, even if they are zero.

    Args:
        config: the model's configuration, such as one from `clip_config`. Weights are to be loaded by the caller.
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        text, vision = config.text_config, config.vision_config
        self.config = config
        self.logit_scale = nn.Parameter(torch.empty(1))
        # Assembled as in `CLIPModel`, which cannot be used as it is: ZeRO 3 cannot partition its scalar temperature.
        self.vision_model, self.text_model = CLIPVisionModel(vision), CLIPTextModel(text)
        self.text_model.embeddings = _TextEmbeddings(text)
        self.visual_projection = nn.Linear(vision.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(text.hidden_size, config.projection_dim, bias=False)

    @property
    def sizes(self) -> ModelSizes:
        text, vision = self.config.text_config, self.config.vision_config
        return ModelSizes(text.vocab_size, text.max_position_embeddings, vision.image_size, self.config.projection_dim)

    @property
    def end_of_text(self) -> int:
        """Id of the token whose feature represents the caption."""
        text = self.config.text_config
        return text.vocab_size - 1 if text.eos_token_id == _OLD_END_OF_TEXT else text.eos_token_id

    def forward(
        self, images: Tensor, input_ids: PackedTokens, architecture: None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """image_features (n, e) and text_features (n, e), L2-normalised, and logit_scale (1,).

        A fixed model has no subnets, so `architecture` is always None.
        """
        at_least_fp32 = torch.promote_types(self.logit_scale.dtype, torch.float32)
        return self.encode_image(images), self.encode_text(input_ids), self.logit_scale.to(at_least_fp32).exp()

    def encode_image(self, images: Tensor) -> Tensor:
        """(n, 3, S, S), normalised -> (n, e), L2-normalised."""
        count = images.shape[0]
        if not count:
            images = images.new_zeros(1, *images.shape[1:])
        return _unit(self.visual_projection(self.vision_model(pixel_values=images).pooler_output))[:count]

    def encode_text(self, input_ids: PackedTokens) -> Tensor:
        """n captions -> (n, e), L2-normalised."""
        pooled = self.text_model(input_ids=self._padded(input_ids)).pooler_output
        return _unit(self.text_projection(pooled))[: input_ids.num_captions]

    def _padded(self, text: PackedTokens) -> Tensor:
        """T ids -> (n, length), padded with end-of-text: attention is causal, so no token sees the padding."""
        lengths = text.cu_seqlens.diff()
        rows = text.ids.new_full((max(text.num_captions, 1), max(text.max_seqlen, 1)), self.end_of_text)
        if text.num_captions:
            # Not `rows[inside] = …`, which synchronises with the device to count the elements.
            inside = torch.arange(text.max_seqlen, device=rows.device) < lengths[:, None]
            rows.masked_scatter_(inside, text.ids)
        return rows


class _TextEmbeddings(CLIPTextEmbeddings):
    """CLIP's, except that it does not read the shape of a weight before its use: under ZeRO 3 it may be partitioned."""

    def forward(self, input_ids: Tensor, position_ids: None = None, inputs_embeds: None = None) -> Tensor:
        """(n, length) -> (n, length, d)."""
        return self.token_embedding(input_ids) + self.position_embedding(self.position_ids[:, : input_ids.shape[1]])


def clip_config(architecture: Architecture, sizes: ModelSizes, end_of_text: int) -> CLIPConfig:
    """The configuration of a CLIP with an architecture's blocks and heads, and patches of 16 pixels.

    Raises:
        ValueError: the architecture has convolutional layers or a shared encoder, which a CLIP does not have.
        InputError: captions end with a token id to which CLIP gives another meaning.
    """
    if end_of_text == _OLD_END_OF_TEXT:
        raise InputError(
            f"the tokenizer ends captions with token {end_of_text}, in place of which transformers' CLIP uses the "
            "largest token of a caption; use another tokenizer (data.tokenizer), or baselines.model growclip"
        )
    if architecture.conv_layers or architecture.shared_blocks:
        raise ValueError(f"{architecture} is not a CLIP's: it has convolutional layers or shared blocks; set both to 0")

    def tower(width: int, blocks: int) -> dict[str, int]:
        heads = {"num_hidden_layers": blocks, "num_attention_heads": width // HEAD_WIDTH}
        return heads | {"hidden_size": width, "intermediate_size": MLP_RATIO * width}

    text = {"vocab_size": sizes.vocab_size, "max_position_embeddings": sizes.context_length}
    tokens = {"bos_token_id": None, "pad_token_id": None, "eos_token_id": end_of_text}
    return CLIPConfig(
        text_config=tower(architecture.text_width, architecture.text_blocks) | text | tokens,
        vision_config=tower(architecture.image_width, architecture.image_blocks)
        | {"image_size": sizes.image_size, "patch_size": STEM_STRIDE},
        projection_dim=sizes.embed_dim,
    )


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1).to(features.dtype)
