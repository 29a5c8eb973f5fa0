"""Which model a phase trains, before it is built: its parameters, initial weights, and how it is evaluated.

Engines, checkpoints, evaluation and the monitor take a GrowCLIP and the baselines' fixed CLIP alike.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from growclip_ds.architecture import Architecture, ModelSizes, Shape
from growclip_ds.evaluation.encoder import CandidateEncoder
from growclip_ds.growth.selection import SupernetEncoder
from growclip_ds.model.checkpointing import ActivationCheckpointing, checkpoint_activations
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.model.initial import initial_tensor, is_vector

Weights = Iterator[tuple[str, Tensor]]


class ModelPlan(Protocol):
    """A model that is not built yet.

    Attributes:
        kind: of model.
        architecture: its blocks and heads.
        sizes: of its input and embedding space.
        end_of_text: id of the token whose feature stands for the caption.
        shapes: of its parameters by name, in the order in which it holds them.
    """

    kind: ClassVar[Literal["growclip", "clip"]]

    @property
    def architecture(self) -> Architecture: ...

    @property
    def sizes(self) -> ModelSizes: ...

    @property
    def end_of_text(self) -> int: ...

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    def initial(self, seed: int | str) -> Weights:
        """The weights of a new model, a tensor at a time, the same on every rank."""
        ...

    def is_vector(self, name: str) -> bool:
        """Whether a parameter is a norm's, a bias or the temperature, which shrinking and perturbing leaves alone."""
        ...

    def build(self, activation_checkpointing: ActivationCheckpointing = "off") -> nn.Module:
        """The model, its weights unwritten."""
        ...

    def encoder(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> CandidateEncoder:
        """What evaluation takes: the model as its only candidate."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of the model, as JSON; read back by `plan_of`."""
        ...


def num_parameters(plan: ModelPlan) -> int:
    """Parameters of the model, without the temperature."""
    return sum(math.prod(shape) for name, shape in plan.shapes.items() if name != "logit_scale")


class ModelWeights(ABC):
    """A model's weights on disk, opened for reading."""

    @property
    @abstractmethod
    def plan(self) -> ModelPlan:
        """Of the model."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """A tensor on the CPU, the caller's own."""

    @property
    def architecture(self) -> Architecture:
        return self.plan.architecture

    @property
    def sizes(self) -> ModelSizes:
        return self.plan.sizes

    @property
    def end_of_text(self) -> int:
        return self.plan.end_of_text

    def load(self) -> nn.Module:
        """The whole model, as training and evaluation run it, in fp32 on the CPU. Raises what `read` does."""
        model = self.plan.build()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.read(name))
        return model


def digest_of(entries: Iterable[tuple[str, str, Sequence[int], int]]) -> str:
    """Of tensors: their names, safetensors types, shapes and checksums, whatever files they are in."""
    return hashlib.blake2b(json.dumps(list(entries)).encode(), digest_size=16).hexdigest()


def plan_of(description: Mapping[str, Any]) -> ModelPlan | None:
    """The model that a checkpoint's description is of; None if it is of no model.

    Raises:
        KeyError, TypeError, ValueError: the description is damaged.
    """
    if "clip" in description:
        from transformers import CLIPConfig  # slow to import

        from growclip_ds.baselines.plan import CLIPPlan

        return CLIPPlan(CLIPConfig.from_dict(description["clip"]))
    if "architecture" in description:
        architecture, sizes = Architecture(**description["architecture"]), ModelSizes(**description["sizes"])
        return GrowCLIPPlan(architecture, sizes, description["end_of_text"])
    return None


@dataclass(frozen=True)
class GrowCLIPPlan:
    """A GrowCLIP.

    Attributes:
        architecture: that weights are made for.
        sizes: of its input and embedding space.
        end_of_text: id of the token whose feature stands for the caption.
    """

    kind: ClassVar[Literal["growclip", "clip"]] = "growclip"

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

    def encoder(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> CandidateEncoder:
        return SupernetEncoder(cast(GrowCLIP, model), [self.architecture])

    def describe(self) -> dict[str, Any]:
        return {
            "architecture": asdict(self.architecture),
            "sizes": asdict(self.sizes),
            "end_of_text": self.end_of_text,
        }
