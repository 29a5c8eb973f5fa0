"""Model specs: descriptions of models that are not built yet, with their parameters' shapes and initial weights.

They let engines, checkpoints and the monitor treat a GrowCLIP and the baselines' fixed CLIP alike.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from growclip_ds.architecture import Architecture, ModelSizes, Shape
from growclip_ds.model.checkpointing import ActivationCheckpointing, checkpoint_activations
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.model.initial import initial_tensor, is_vector

Kind = Literal["growclip", "clip"]
Weights = Iterator[tuple[str, Tensor]]


class ModelSpec(Protocol):
    """The description of a model that is not built yet.

    Attributes:
        kind: the kind of model: GrowCLIP, or the baselines' fixed CLIP.
        architecture: its numbers of layers, blocks and heads.
        sizes: sizes of its input and embedding space.
        end_of_text: id of the token whose feature represents the caption.
        shapes: shapes of its parameters by name, in the model's own order.
    """

    kind: ClassVar[Kind]

    @property
    def architecture(self) -> Architecture: ...

    @property
    def sizes(self) -> ModelSizes: ...

    @property
    def end_of_text(self) -> int: ...

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    def initial(self, seed: int | str) -> Weights:
        """Yields the weights of a new model with their names, one tensor at a time, the same on every rank."""
        ...

    def is_vector(self, name: str) -> bool:
        """Whether a parameter is a norm's, a bias or the temperature, which are not shrunk and perturbed."""
        ...

    def build(self, activation_checkpointing: ActivationCheckpointing = "off") -> nn.Module:
        """Builds the model with uninitialised weights."""
        ...

    def describe(self) -> dict[str, Any]:
        """A checkpoint's JSON description of the model, which `checkpoint.model_weights.spec_of` reads back."""
        ...


def num_parameters(spec: ModelSpec) -> int:
    """Number of parameters of the model, without the temperature."""
    return sum(math.prod(shape) for name, shape in spec.shapes.items() if name != "logit_scale")


@dataclass(frozen=True)
class GrowCLIPSpec:
    """The spec of a GrowCLIP.

    Attributes:
        architecture: the architecture of the model.
        sizes: sizes of its input and embedding space.
        end_of_text: id of the token whose feature represents the caption.
    """

    kind: ClassVar[Kind] = "growclip"

    architecture: Architecture
    sizes: ModelSizes
    end_of_text: int

    @functools.cached_property
    def shapes(self) -> Mapping[str, Shape]:
        return self.architecture.parameter_shapes(self.sizes)

    def initial(self, seed: int | str) -> Weights:
        return ((name, initial_tensor(name, shape, self.architecture, seed)) for name, shape in self.shapes.items())

    def is_vector(self, name: str) -> bool:
        return is_vector(name)

    def build(self, activation_checkpointing: ActivationCheckpointing = "off") -> GrowCLIP:
        sizes = asdict(self.sizes)
        model = GrowCLIP(self.architecture, **sizes, end_of_text=self.end_of_text, initialise=False)
        return checkpoint_activations(model, activation_checkpointing)

    def describe(self) -> dict[str, Any]:
        return {
            "architecture": asdict(self.architecture),
            "sizes": asdict(self.sizes),
            "end_of_text": self.end_of_text,
        }
