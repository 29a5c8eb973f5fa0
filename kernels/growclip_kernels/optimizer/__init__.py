"""LAMB and AdamW updates of flat shards that hold many tensors, restricted to given regions."""

from growclip_kernels.optimizer.function import adamw, lamb_apply, lamb_direction, trust_ratios
from growclip_kernels.optimizer.regions import Buffers, Region, Regions, Span

__all__ = ["Buffers", "Region", "Regions", "Span", "adamw", "lamb_apply", "lamb_direction", "trust_ratios"]
