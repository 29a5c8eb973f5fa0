"""Initial weights of a fixed CLIP, with the same standard deviations as GrowCLIP's, under CLIP's names.

The methods compared must not differ in their initialisation. In blocks the deviations are those of CLIP's reference
implementation; `transformers` swaps those of queries, keys and values with that of the attention output.
"""

from __future__ import annotations

import math

from torch import Tensor
from transformers import CLIPConfig

from growclip_ds.architecture import Shape
from growclip_ds.model.initial import drawn, initial_vector


def is_vector(name: str) -> bool:
    """Whether a parameter is a norm's, a bias or the temperature, by its `CLIPModel` name; the class token is not."""
    return name == "logit_scale" or name.endswith(".bias") or "norm" in name


def initial_tensor(name: str, shape: Shape, config: CLIPConfig, seed: int | str) -> Tensor:
    """The tensor as a new model starts with it, in fp32 on the CPU.

    Args:
        name: the parameter's name in `CLIPModel`.
        shape: its shape; the temperature's is (1,).
        config: the model's configuration, whose depths set the scale.
        seed: seed of the draw, combined with the name.
    """
    if is_vector(name):
        return initial_vector(name, shape)
    return drawn(name, shape, _standard_deviation(name, shape, config), seed)


def _standard_deviation(name: str, shape: Shape, config: CLIPConfig) -> float:
    match name.split("."):
        case ["text_model", "embeddings", "token_embedding", "weight"]:
            return 0.02
        case ["text_model", "embeddings", "position_embedding", "weight"]:
            return 0.01
        case ["vision_model", "embeddings", "patch_embedding", "weight"]:
            return math.prod(shape[1:]) ** -0.5
        case ["vision_model", "embeddings", *_]:
            return shape[-1] ** -0.5
        case ["text_projection" | "visual_projection", "weight"]:
            return shape[1] ** -0.5
        case [tower, "encoder", "layers", _, *layer, "weight"]:
            depth = (config.text_config if tower == "text_model" else config.vision_config).num_hidden_layers
            width = min(shape)
            if layer in (["self_attn", "out_proj"], ["mlp", "fc2"]):
                return (2 * depth * width) ** -0.5
            return (2 * width) ** -0.5 if layer == ["mlp", "fc1"] else width**-0.5
    raise ValueError(f"no initial value is known for a parameter called {name!r}")
