"""Fused operations for contrastive language-image training. Independent of `growclip_ds`."""

from growclip_kernels.contrastive import contrastive_loss, sigmoid_loss
from growclip_kernels.packed_attention import attention

__all__ = ["attention", "contrastive_loss", "sigmoid_loss"]
