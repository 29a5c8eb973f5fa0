"""Activation checkpointing: a block's activations are recomputed in the backward pass instead of stored."""

from __future__ import annotations

from typing import Literal, get_args

from fairscale.nn import checkpoint_wrapper
from torch import nn

from growclip_ds.model.growclip import GrowCLIP

ActivationCheckpointing = Literal["off", "on", "offload"]


def checkpoint_activations(model: GrowCLIP, mode: ActivationCheckpointing) -> GrowCLIP:
    """Wraps the blocks of all encoders so that they store only their inputs: on the device, or on the CPU ("offload").

    Changes the model in place and returns it; its parameters keep their names and order.
    """
    for encoder in (model.image, model.text, model.shared):
        checkpoint_blocks(encoder.blocks, mode)
    return model


def checkpoint_blocks(blocks: nn.ModuleList, mode: ActivationCheckpointing) -> None:
    """Wraps the blocks of one encoder, as `checkpoint_activations` does.

    Raises:
        ValueError: the mode is unknown.
    """
    modes = get_args(ActivationCheckpointing)
    if mode not in modes:
        raise ValueError(f"activation checkpointing must be one of {', '.join(modes)}, not {mode!r}")
    if mode != "off":
        for index, block in enumerate(blocks):
            blocks[index] = checkpoint_wrapper(block, offload_to_cpu=mode == "offload")
