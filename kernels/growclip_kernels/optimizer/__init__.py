"""LAMB and AdamW on flat shards of many tensors, of which only given regions are updated."""

from growclip_kernels.optimizer.function import Buffers, adamw, lamb_apply, lamb_direction, trust_ratios
from growclip_kernels.optimizer.regions import Region, Regions, Span

__all__ = ["Buffers", "Region", "Regions", "Span", "adamw", "lamb_apply", "lamb_direction", "trust_ratios"]
