"""The model spec of the baselines' fixed CLIP."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import CLIPConfig

from growclip_ds.architecture import Architecture, ModelSizes, Shape
from growclip_ds.baselines.clip import FixedCLIP
from growclip_ds.baselines.clip_checkpoint import load_clip
from growclip_ds.baselines.initial import initial_tensor, is_vector
from growclip_ds.model.checkpointing import ActivationCheckpointing, checkpoint_blocks
from growclip_ds.model.spec import Kind, Weights


@dataclass(frozen=True)
class CLIPSpec:
    """A `FixedCLIP`; see `ModelSpec`.

    Attributes:
        config: the model's configuration.
    """

    kind: ClassVar[Kind] = "clip"

    config: CLIPConfig

    @property
    def architecture(self) -> Architecture:
        """Its blocks and heads; a pretrained CLIP's heads need not be 64 channels wide."""
        text, vision = self.config.text_config, self.config.vision_config
        return Architecture(
            0, vision.num_hidden_layers, vision.num_attention_heads, text.num_hidden_layers, text.num_attention_heads, 0
        )

    @property
    def sizes(self) -> ModelSizes:
        return self._outline.sizes

    @property
    def end_of_text(self) -> int:
        return self._outline.end_of_text

    @functools.cached_property
    def shapes(self) -> Mapping[str, Shape]:
        return {name: tuple(parameter.shape) for name, parameter in self._outline.named_parameters()}

    @functools.cached_property
    def _outline(self) -> FixedCLIP:
        with torch.device("meta"):
            return FixedCLIP(self.config)

    def initial(self, seed: int | str) -> Weights:
        return ((name, initial_tensor(name, shape, self.config, seed)) for name, shape in self.shapes.items())

    def is_vector(self, name: str) -> bool:
        return is_vector(name)

    def build(self, activation_checkpointing: ActivationCheckpointing = "off") -> FixedCLIP:
        model = FixedCLIP(self.config)
        for tower in (model.vision_model, model.text_model):
            checkpoint_blocks(tower.encoder.layers, activation_checkpointing)
        return model

    def describe(self) -> dict[str, Any]:
        return {"clip": self.config.to_dict()}


def clip_weights(folder: Path | str) -> Weights:
    """Every tensor of a CLIP checkpoint in Hugging Face format, by its name in `FixedCLIP`.

    Raises:
        InputError: see `load_clip`.
    """
    return ((name, parameter.detach()) for name, parameter in load_clip(folder).named_parameters())
