"""Self-attention of packed sequences: no sequence sees another, nothing is computed for padding."""

from growclip_kernels.packed_attention.function import attend, attention, check_boundaries
from growclip_kernels.packed_attention.sequences import Run, Sequences

__all__ = ["Run", "Sequences", "attend", "attention", "check_boundaries"]
