"""A model's weights on disk, whatever format they are in."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.model.spec import GrowCLIPSpec, ModelSpec


class ModelWeights(ABC):
    """A model's weights on disk, opened for reading."""

    @property
    @abstractmethod
    def spec(self) -> ModelSpec:
        """The model whose weights these are, not built."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """A tensor on the CPU, the caller's own."""

    @property
    def architecture(self) -> Architecture:
        return self.spec.architecture

    @property
    def sizes(self) -> ModelSizes:
        return self.spec.sizes

    @property
    def end_of_text(self) -> int:
        return self.spec.end_of_text

    def load(self) -> nn.Module:
        """The whole model, as training and evaluation run it, in fp32 on the CPU. Raises what `read` does."""
        model = self.spec.build()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.read(name))
        return model


def digest_of(entries: Iterable[tuple[str, str, Sequence[int], str]]) -> str:
    """A digest of tensors' names, safetensors types, shapes and checksums, whatever files they are in."""
    return hashlib.blake2b(json.dumps(list(entries)).encode(), digest_size=16).hexdigest()


def spec_of(description: Mapping[str, Any]) -> ModelSpec | None:
    """The model that a checkpoint's description is of; None if it is of no model.

    Raises:
        KeyError, TypeError, ValueError: the description is damaged.
    """
    if "clip" in description:
        from transformers import CLIPConfig  # slow to import

        from growclip_ds.baselines.spec import CLIPSpec

        return CLIPSpec(CLIPConfig.from_dict(description["clip"]))
    if "architecture" in description:
        architecture, sizes = Architecture(**description["architecture"]), ModelSizes(**description["sizes"])
        return GrowCLIPSpec(architecture, sizes, description["end_of_text"])
    return None
