"""The model's weight initialisation, one tensor at a time.

Random values depend only on a seed and the tensor's name, so they are the same on every rank, after a resume, and
whatever else is drawn. Transformers are initialised like CLIP's (Radford et al. 2021, section 2.5 and the reference
implementation): N(0, 1/d) for queries, keys and values, N(0, 1/2d) into the MLP, and smaller by √(2 · depth) where a
branch enters the residual stream.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from growclip_ds.architecture import Architecture, Shape
from growclip_ds.seeds import named_seed

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
MAX_LOGIT_SCALE = math.log(100)


def is_vector(name: str) -> bool:
    """Whether a parameter is a norm's, a bias or the temperature, which inheriting keeps by default, not blends."""
    return name == "logit_scale" or name.endswith(".bias") or "norm." in name


def initial_vector(name: str, shape: Shape) -> Tensor:
    """The fixed initial value of a norm's parameter, a bias or the temperature."""
    if name == "logit_scale":
        return torch.full(shape, INITIAL_LOGIT_SCALE)
    return torch.zeros(shape) if name.endswith(".bias") else torch.ones(shape)


def initial_tensor(name: str, shape: Shape, architecture: Architecture, seed: int | str) -> Tensor:
    """The initial value of a parameter of a new model, in fp32 on the CPU.

    Args:
        name: the parameter's name in `architecture.parameter_shapes`.
        shape: its shape there.
        architecture: the model's architecture, whose widths and depths set the scale.
        seed: seed of the random values, combined with the name.
    """
    if is_vector(name):
        return initial_vector(name, shape)
    return drawn(name, shape, _standard_deviation(name, shape, architecture), seed)


def drawn(name: str, shape: Shape, deviation: float, seed: int | str) -> Tensor:
    """A sample of N(0, deviation²) that depends only on the seed and the name, in fp32 on the CPU."""
    generator = torch.Generator().manual_seed(named_seed(seed, name))
    return torch.empty(shape).normal_(0, deviation, generator=generator)


def _standard_deviation(name: str, shape: Shape, architecture: Architecture) -> float:
    match name.split("."):
        case ["image", "stem", *_, "conv", "weight"]:
            return math.sqrt(2 / math.prod(shape[1:]))
        case ["image", "stem", "patches", "weight"]:
            return math.prod(shape[1:]) ** -0.5
        case ["image", "embedding", _]:
            return shape[-1] ** -0.5
        case ["text", "embedding", "tokens"]:
            return 0.02
        case ["text", "embedding", "positions"]:
            return 0.01
        case [_, "projection", "weight"]:
            return shape[1] ** -0.5
        case [encoder, "blocks", _, *layer, "weight"]:
            depth = getattr(architecture, f"{encoder}_blocks")
            width = min(shape)
            if layer in (["attention", "out"], ["mlp", "contract"]):
                return (2 * depth * width) ** -0.5
            return width**-0.5 if layer == ["attention", "qkv"] else (2 * width) ** -0.5
    raise ValueError(f"no initialisation is known for a parameter named {name!r}")
