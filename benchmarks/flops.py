"""Operations that a CLIP needs, counted from its sizes: what utilisation is measured against.

A multiplication and an addition are two operations. Counted are matrix products and convolutions of real tokens:
padding is no useful work, nor is what a causal mask hides, nor what is computed a second time. Norms, activations and
additions are left out, as is usual. A training step is three times the forward pass (gradients of inputs and weights).
"""

from __future__ import annotations

from collections.abc import Sequence

from growclip_ds.architecture import MLP_RATIO, PATCH_SIZE, STEM_CHANNELS, STEM_STRIDE, Architecture, ModelSizes


def training_flops(forward: int, pairs: int, contrasted_with: int, embed_dim: int) -> int:
    """Operations of a training step: three times the model's forward pass and the similarities of all pairs.

    Args:
        forward: of the model for these pairs.
        pairs: pictures with captions.
        contrasted_with: captions that each picture is compared with.
        embed_dim: width of the features.
    """
    return 3 * (forward + 2 * pairs * contrasted_with * embed_dim)


def growclip_flops(architecture: Architecture, sizes: ModelSizes, lengths: Sequence[int]) -> int:
    """The forward pass of a GrowCLIP on as many pictures as captions.

    Args:
        architecture: that runs.
        sizes: of its input.
        lengths: tokens of each caption.
    """
    pixels = (sizes.image_size // 2) ** 2  # behind the stem's first convolution, of stride 2
    stem = 2 * pixels * STEM_CHANNELS * 9 * (3 + architecture.conv_layers * STEM_CHANNELS)
    patch = 2 * STEM_CHANNELS * PATCH_SIZE**2 * architecture.image_width
    return len(lengths) * stem + _behind_patches(architecture, sizes, lengths, patch)


def clip_flops(architecture: Architecture, sizes: ModelSizes, lengths: Sequence[int]) -> int:
    """As `growclip_flops`, of a CLIP whose patches of 16 x 16 pixels are embedded directly, without a stem."""
    return _behind_patches(architecture, sizes, lengths, 2 * 3 * STEM_STRIDE**2 * architecture.image_width)


def _behind_patches(architecture: Architecture, sizes: ModelSizes, lengths: Sequence[int], patch: int) -> int:
    """The forward pass but for the stem; `patch`: operations of embedding one patch."""
    pictures = len(lengths)
    image_tokens, text_tokens = pictures * sizes.image_tokens, sum(lengths)
    image_scores = pictures * sizes.image_tokens**2
    text_scores = sum(length * (length + 1) // 2 for length in lengths)  # a token sees itself and those before it
    total = patch * pictures * (sizes.image_tokens - 1)
    total += architecture.image_blocks * block_flops(image_tokens, image_scores, architecture.image_width)
    total += architecture.text_blocks * block_flops(text_tokens, text_scores, architecture.text_width)
    total += architecture.shared_blocks * block_flops(
        image_tokens + text_tokens, image_scores + text_scores, architecture.shared_width
    )
    heads = architecture.image_output_width + architecture.text_output_width
    return total + 2 * pictures * sizes.embed_dim * heads


def block_flops(tokens: int, scores: int, width: int) -> int:
    """A transformer block's forward pass.

    Args:
        tokens: of all sequences.
        scores: pairs of a query and a key that it may see, of all sequences.
        width: channels.
    """
    linear = 2 * tokens * width**2 * (3 + 1 + 2 * MLP_RATIO)  # queries, keys and values; out; MLP
    return linear + 4 * scores * width  # q kᵀ, and weights times v
