"""Self-attention over packed (varlen) sequences: no attention across sequences and no computation for padding."""

from growclip_kernels.packed_attention.function import attend, attention, check_boundaries
from growclip_kernels.packed_attention.sequences import SequenceGroup, Sequences

__all__ = ["SequenceGroup", "Sequences", "attend", "attention", "check_boundaries"]
