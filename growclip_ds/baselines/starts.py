"""How a fixed model's weights come into a growth step: from scratch, continued, or shrunk and perturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from growclip_ds.baselines.clip import FixedCLIP
from growclip_ds.inheritance import Momentum
from growclip_ds.seeds import named_seed

Weights = Iterator[tuple[str, Tensor]]


def from_scratch(config: CLIPConfig, seed: int | str) -> Weights:
    """Every tensor of a new model (TFS), as `transformers` draws it, the same on every rank.

    Args:
        config: of the model.
        seed: of the draw. Torch's own generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(seed, "clip"))
        drawn = dict(CLIPModel(config).named_parameters())
    for name in _names(config):
        yield name, torch.atleast_1d(drawn[name].detach())  # the temperature is a scalar there


def continued(config: CLIPConfig, read: Callable[[str], Tensor]) -> Weights:
    """Every tensor as the last step left it (TWP).

    Args:
        config: of the model.
        read: gives a tensor of the last step's model by name.
    """
    for name in _names(config):
        yield name, read(name)


def shrunk_and_perturbed(
    config: CLIPConfig, read: Callable[[str], Tensor], momentum: Momentum, seed: int | str
) -> Weights:
    """Every tensor as β·old + γ·rand (SAP: Ash and Adams 2020, equation 1, with the constants of Eq. 5).

    Norms, biases and the temperature stay as they are, unless `momentum` blends vectors too: the same rule as for
    growing models, so that the methods differ in nothing else.

    Args:
        config: of the model.
        read: gives a tensor of the last step's model by name.
        momentum: β and γ.
        seed: of the draw.
    """
    for name, drawn in from_scratch(config, seed):
        old = read(name).to(drawn.dtype)
        keep = _is_vector(name) and not momentum.blend_vectors
        yield name, old if keep else momentum.beta * old + momentum.gamma * drawn


def _names(config: CLIPConfig) -> list[str]:
    with torch.device("meta"):
        return [name for name, _ in FixedCLIP(config).named_parameters()]


def _is_vector(name: str) -> bool:
    """Norm gains and biases, biases, and the temperature, by their names in `CLIPModel`; the class token is none."""
    return name == "logit_scale" or name.endswith(".bias") or "norm" in name
