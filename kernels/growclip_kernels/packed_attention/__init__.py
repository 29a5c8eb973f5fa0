"""Self-attention of packed sequences: no sequence sees another, nothing is computed for padding."""

from growclip_kernels.packed_attention.function import attention

__all__ = ["attention"]
