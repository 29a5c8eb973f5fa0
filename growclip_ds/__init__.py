"""GrowCLIP-DS: contrastive language-image pre-training that grows with its data, on DeepSpeed."""

from growclip_ds.architecture import Architecture
from growclip_ds.growth_space import GrowthSpace
from growclip_ds.inherit import inherit
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.selection import composite_metric

__all__ = ["Architecture", "GrowCLIP", "GrowthSpace", "composite_metric", "inherit"]
