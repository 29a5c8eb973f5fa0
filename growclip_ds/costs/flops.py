"""FLOPs of a model per image-text pair, counted from its sizes.

A multiply-add is two operations. Matrix products and convolutions of real tokens are counted; padding, what a causal
mask hides, norms, activation functions and additions are not. The loss is not the model's, see
`loss_flops`. No torch.
"""

from __future__ import annotations

from growclip_ds.architecture import MLP_RATIO, PATCH_SIZE, STEM_CHANNELS, STEM_STRIDE, Architecture, ModelSizes


def forward_flops(architecture: Architecture, sizes: ModelSizes, text_tokens: float) -> float:
    """Floating-point operations of a GrowCLIP's forward pass on one pair.

    Args:
        architecture: the model that runs; of a supernet, the sampled subnet.
        sizes: those of its input.
        text_tokens: length of the caption, start and end of text included; a mean will do, as all but the attention
            scores, a small part, are proportional to it.
    """
    return stem_flops(architecture, sizes) + _behind_stem(architecture, sizes, text_tokens)


def clip_forward_flops(architecture: Architecture, sizes: ModelSizes, text_tokens: float) -> float:
    """As `forward_flops`, for a fixed CLIP, which embeds patches of 16 × 16 pixels without a stem.

    It takes padded captions: with `text_tokens` the padding included, what it computes; without, what it had to.
    """
    patch = 2 * 3 * STEM_STRIDE**2 * architecture.image_width
    return patch * (sizes.image_tokens - 1) + _behind_stem(architecture, sizes, text_tokens)


# By a model's kind (`growclip_ds.model.spec.ModelSpec`).
FORWARD_FLOPS = {"growclip": forward_flops, "clip": clip_forward_flops}


def training_flops(forward: float) -> float:
    """Operations of a forward and a backward pass, which makes gradients of inputs and of weights: 3 × forward."""
    return 3 * forward


def loss_flops(pairs: int, embed_dim: int) -> float:
    """Operations of the contrastive loss of a batch, forward and backward, over all ranks: 8 n² d.

    The scores are computed in both passes, and multiplied with the features of each modality in the second.
    """
    return 8 * pairs**2 * embed_dim


def block_flops(width: int, tokens: float, scores: float) -> float:
    """Operations of a transformer block's forward pass.

    Args:
        width: channels.
        tokens: tokens of all sequences.
        scores: (query, visible key) pairs of all sequences.
    """
    linear = 2 * tokens * width**2 * (3 + 1 + 2 * MLP_RATIO)  # queries, keys and values; out; MLP
    return linear + 4 * scores * width  # q kᵀ, and weights times v


def block_group_flops(architecture: Architecture, sizes: ModelSizes, text_tokens: float) -> float:
    """Operations of all transformer blocks for one pair: what activation checkpointing computes a second time."""
    image = sizes.image_tokens, sizes.image_tokens**2
    text = text_tokens, text_tokens * (text_tokens + 1) / 2  # a token sees itself and those before it
    both = image[0] + text[0], image[1] + text[1]
    return (
        architecture.image_blocks * block_flops(architecture.image_width, *image)
        + architecture.text_blocks * block_flops(architecture.text_width, *text)
        + architecture.shared_blocks * block_flops(architecture.shared_width, *both)
    )


def stem_flops(architecture: Architecture, sizes: ModelSizes) -> float:
    """Operations of a GrowCLIP's stem for one picture: its 3 × 3 convolutions, and the embedding of patches."""
    pixels = (sizes.image_size // 2) ** 2  # behind the first convolution, of stride 2
    convolutions = 2 * pixels * STEM_CHANNELS * 9 * (3 + architecture.conv_layers * STEM_CHANNELS)
    patch = 2 * STEM_CHANNELS * PATCH_SIZE**2 * architecture.image_width
    return convolutions + patch * (sizes.image_tokens - 1)


def _behind_stem(architecture: Architecture, sizes: ModelSizes, text_tokens: float) -> float:
    heads = 2 * sizes.embed_dim * (architecture.image_output_width + architecture.text_output_width)
    return block_group_flops(architecture, sizes, text_tokens) + heads
