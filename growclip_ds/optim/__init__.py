"""LAMB and AdamW that work on ZeRO shards and update sampled subnets exactly."""

from growclip_ds.optim.adamw import AdamW
from growclip_ds.optim.lamb import Lamb
from growclip_ds.optim.subnet import SubnetOptimizer

OPTIMIZERS: dict[str, type[SubnetOptimizer]] = {"lamb": Lamb, "adamw": AdamW}  # by their names in a configuration

__all__ = ["OPTIMIZERS", "AdamW", "Lamb", "SubnetOptimizer"]
