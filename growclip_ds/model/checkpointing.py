"""Activation checkpointing: a block's inside is computed again in the backward pass instead of kept."""

from __future__ import annotations

from typing import Literal

from fairscale.nn import checkpoint_wrapper

from growclip_ds.model.growclip import GrowCLIP

ActivationCheckpointing = Literal["off", "on", "offload"]


def checkpoint_activations(model: GrowCLIP, mode: ActivationCheckpointing) -> GrowCLIP:
    """Lets the blocks of all encoders keep only their inputs: on the device, or with "offload" in CPU memory.

    Changes the model in place; its parameters keep their names and places.
    """
    if mode != "off":
        for encoder in (model.image, model.text, model.shared):
            for index, block in enumerate(encoder.blocks):
                encoder.blocks[index] = checkpoint_wrapper(block, offload_to_cpu=mode == "offload")
    return model
