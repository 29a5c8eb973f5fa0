"""FLOPs of a model per image-text pair, counted from its sizes.

A multiply-add is two operations. Matrix products and convolutions of real tokens are counted; padding, scores hidden by
the causal mask, norms, activation functions and additions are not. The loss is counted separately, by `loss_flops`. No
torch.
"""

from __future__ import annotations

from growclip_ds.architecture import MLP_RATIO, PATCH_SIZE, STEM_CHANNELS, STEM_STRIDE, Architecture, ModelSizes


def forward_flops(architecture: Architecture, sizes: ModelSizes, text_tokens: float) -> float:
    """FLOPs of a GrowCLIP's forward pass on one pair.

    Args:
        architecture: the architecture that runs; in a supernet, that of the sampled subnet.
        sizes: sizes of its input and embedding space.
        text_tokens: tokens of the caption, start and end of text included. A mean will do: all but the attention
            scores, a small part, is proportional to it.
    """
    return stem_flops(architecture, sizes) + _behind_stem(architecture, sizes, text_tokens)


def clip_forward_flops(architecture: Architecture, sizes: ModelSizes, text_tokens: float) -> float:
    """FLOPs of the forward pass of a fixed CLIP on one pair; it embeds patches of 16 × 16 pixels without a stem.

    It pads captions: if `text_tokens` includes the padding, the result is what it computes; otherwise, what it would
    have to compute.
    """
    patch = 2 * 3 * STEM_STRIDE**2 * architecture.image_width
    return patch * (sizes.image_tokens - 1) + _behind_stem(architecture, sizes, text_tokens)


# By the kind of a model (`growclip_ds.model.spec.ModelSpec`).
FORWARD_FLOPS = {"growclip": forward_flops, "clip": clip_forward_flops}


def training_flops(forward: float) -> float:
    """FLOPs of a forward and a backward pass, which computes gradients of inputs and weights: 3 × forward."""
    return 3 * forward


def loss_flops(pairs: int, embed_dim: int) -> float:
    """FLOPs of the contrastive loss of a batch, forward and backward, over all ranks: 8 n² d.

    Both passes compute the scores; the backward pass multiplies them with the features of each modality.

    Args:
        pairs: pairs of the global batch, n.
        embed_dim: channels of the features, d.
    """
    return 8 * pairs**2 * embed_dim


def block_flops(width: int, tokens: float, scores: float) -> float:
    """FLOPs of the forward pass of a transformer block.

    Args:
        width: channels of the block.
        tokens: tokens in all sequences.
        scores: (query, visible key) pairs in all sequences.
    """
    linear = 2 * tokens * width**2 * (3 + 1 + 2 * MLP_RATIO)  # queries, keys and values; output; MLP
    return linear + 4 * scores * width  # q kᵀ, and attention weights times v


def block_group_flops(architecture: Architecture, sizes: ModelSizes, text_tokens: float) -> float:
    """FLOPs of all transformer blocks for one pair, which activation checkpointing recomputes."""
    image = sizes.image_tokens, sizes.image_tokens**2
    text = text_tokens, text_tokens * (text_tokens + 1) / 2  # a token attends to itself and those before it
    both = image[0] + text[0], image[1] + text[1]
    return (
        architecture.image_blocks * block_flops(architecture.image_width, *image)
        + architecture.text_blocks * block_flops(architecture.text_width, *text)
        + architecture.shared_blocks * block_flops(architecture.shared_width, *both)
    )


def stem_flops(architecture: Architecture, sizes: ModelSizes) -> float:
    """FLOPs of a GrowCLIP's stem for one image: its 3 × 3 convolutions, and the embedding of patches."""
    pixels = (sizes.image_size // 2) ** 2  # after the first convolution, of stride 2
    convolutions = 2 * pixels * STEM_CHANNELS * 9 * (3 + architecture.conv_layers * STEM_CHANNELS)
    patch = 2 * STEM_CHANNELS * PATCH_SIZE**2 * architecture.image_width
    return convolutions + patch * (sizes.image_tokens - 1)


def _behind_stem(architecture: Architecture, sizes: ModelSizes, text_tokens: float) -> float:
    heads = 2 * sizes.embed_dim * (architecture.image_output_width + architecture.text_output_width)
    return block_group_flops(architecture, sizes, text_tokens) + heads
