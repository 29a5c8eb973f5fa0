"""A model's weights on disk, in any format."""

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
        """Specification of the model that these weights belong to."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """A new copy of a tensor, on the CPU."""

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
        """The complete model, as used in training and evaluation, in fp32 on the CPU. Raises the errors of `read`."""
        model = self.spec.build()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.read(name))
        return model


def digest_of(entries: Iterable[tuple[str, str, Sequence[int], str]]) -> str:
    """Digest of tensors' names, safetensors dtypes, shapes and checksums, independent of the files that hold them."""
    return hashlib.blake2b(json.dumps(list(entries)).encode(), digest_size=16).hexdigest()


def spec_of(description: Mapping[str, Any]) -> ModelSpec | None:
    """Specification of the model in a checkpoint's description; None if it describes no model.

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
