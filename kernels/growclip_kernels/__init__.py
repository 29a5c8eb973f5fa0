"""Fused operations of contrastive language-image training. Knows nothing of `growclip_ds`."""

from growclip_kernels.attention import attention
from growclip_kernels.contrastive import contrastive_loss

__all__ = ["attention", "contrastive_loss"]
