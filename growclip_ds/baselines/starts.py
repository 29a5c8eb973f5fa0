"""How a fixed model's weights carry over to the next growth step: continued, or shrunk and perturbed."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from growclip_ds.growth.inheritance import PIM
from growclip_ds.model.spec import ModelSpec, Weights


def continued(spec: ModelSpec, read: Callable[[str], Tensor]) -> Weights:
    """Every tensor as the previous growth step left it (TWP).

    Args:
        spec: the model's spec.
        read: returns a tensor of the previous step's model by name.
    """
    return ((name, read(name)) for name in spec.shapes)


def shrunk_and_perturbed(spec: ModelSpec, read: Callable[[str], Tensor], pim: PIM, seed: int | str) -> Weights:
    """Every tensor as β·old + γ·rand (SAP: Ash and Adams 2020, equation 1, with the constants of Eq. 5).

    Norms, biases and the temperature are copied, unless `pim` blends vectors too: the same rule as for growing models,
    so that the methods differ in nothing else.

    Args:
        spec: the model's spec.
        read: returns a tensor of the previous step's model by name.
        pim: β and γ.
        seed: seed of the random weights.
    """
    for name, drawn in spec.initial(seed):
        yield name, pim.blend(read(name).to(drawn.dtype), drawn, spec.is_vector(name))
