"""An exported model opened like a checkpoint: growth and evaluation read its weights by the same names."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from growclip_ds.architecture import Architecture, ModelSizes, Shape
from growclip_ds.checkpoint.exported_config import (
    CONFIG,
    MODEL_TYPE,
    invalid_config,
    read_config,
    read_growth,
    read_object,
)
from growclip_ds.checkpoint.model_weights import ModelWeights, digest_of
from growclip_ds.checkpoint.weights_file import checksum, tensor_bytes
from growclip_ds.errors import InputError
from growclip_ds.model.spec import GrowCLIPSpec

INDEX = "model.safetensors.index.json"

_TYPES = ("F32", "F16", "BF16")


def is_exported(folder: Path) -> bool:
    """Whether the folder holds a GrowCLIP in Hugging Face format."""
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_type"] == MODEL_TYPE
    except (OSError, ValueError, KeyError, TypeError):
        return False


class ExportedModel(ModelWeights):
    """A GrowCLIP in Hugging Face format, opened for reading with the interface and tensor names of a `Checkpoint`.

    Attributes:
        folder: the model's folder.
        description: the description as in a checkpoint, with `growth_step` if known.
        growth: the growth steps that the model has finished, each with its step, architecture, parameters and samples.

    Raises:
        InputError: there is no such model, a file is missing or damaged, or the weights do not match config.json.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        config = read_config(self.folder)
        self.growth = read_growth(self.folder, config)
        try:
            architecture = Architecture(**{field.name: config[field.name] for field in fields(Architecture)})
            sizes = ModelSizes(**{field.name: config[field.name] for field in fields(ModelSizes)})
            self._spec = GrowCLIPSpec(architecture, sizes, int(config["end_of_text"]))
        except (KeyError, TypeError, ValueError) as error:
            raise invalid_config(self.folder, error) from error
        self.description = self.spec.describe()
        if self.growth:
            self.description["growth_step"] = self.growth[-1]["step"]
        self._files: dict[str, Any] = {}
        self._places = self._find_tensors()
        self._check_shapes()

    @property
    def names(self) -> list[str]:
        """Names of all tensors, in the order of the model's parameters."""
        return list(self.spec.shapes)

    @property
    def spec(self) -> GrowCLIPSpec:
        return self._spec

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def shape(self, name: str) -> Shape:
        return tuple(self._slice(name).get_shape())

    def digest(self, names: Iterable[str]) -> str:
        """Digest of these tensors in fp32, equal to that of the exported checkpoint. Reads the tensors."""
        tensors = ((name, self.read(name)) for name in names)
        return digest_of((name, "F32", tensor.shape, checksum(tensor_bytes(tensor))) for name, tensor in tensors)

    def read(self, name: str) -> Tensor:
        """A new copy of the tensor, in fp32 on the CPU.

        Raises:
            InputError: there is no such tensor, or its file cannot be read.
        """
        try:
            return self._slice(name)[...].to(torch.float32, copy=True)
        except (SafetensorError, OSError) as error:
            raise self._unreadable(self._places[name], error) from error

    def _slice(self, name: str) -> Any:
        if name not in self._places:
            raise InputError(f"{self.folder}: the model has no tensor {name}; copy the folder again")
        return self._files[self._places[name]].get_slice(name)

    def _find_tensors(self) -> dict[str, str]:
        """Opens the files and returns which one holds each tensor."""
        if (self.folder / INDEX).exists():
            files = sorted(set(read_object(self.folder / INDEX).get("weight_map", {}).values()))
        else:
            files = ["model.safetensors"]
        places: dict[str, str] = {}
        for file in files:
            if not (self.folder / file).is_file():
                raise InputError(f"{self.folder / file}: no such file; the folder is incomplete, copy it again")
            try:
                self._files[file] = safe_open(self.folder / file, framework="pt")
                places |= dict.fromkeys(self._files[file].keys(), file)
            except (SafetensorError, OSError) as error:
                raise self._unreadable(file, error) from error
        return places

    def _check_shapes(self) -> None:
        for name, shape in self.spec.shapes.items():
            if self.shape(name) != shape or self._slice(name).get_dtype() not in _TYPES:
                found = f"{self._slice(name).get_dtype()} {list(self.shape(name))}"
                raise InputError(
                    f"{self.folder}: {name} is {found}, but {CONFIG} describes a model in which it is a floating-point "
                    f"{list(shape)}; the weights do not belong to this configuration"
                )

    def _unreadable(self, file: str, error: Exception) -> InputError:
        return InputError(f"{self.folder / file}: cannot be read ({error}); copy the folder again")
