"""Losses over all pairs of the global batch, without a matrix of all similarities in memory."""

from growclip_kernels.contrastive.function import contrastive_loss, sigmoid_loss

__all__ = ["contrastive_loss", "sigmoid_loss"]
