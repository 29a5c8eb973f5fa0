"""Reads CLIP checkpoints in Hugging Face format. Weights come from safetensors only; errors name the wrong tensor."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPConfig

from growclip_ds.baselines.clip import FixedCLIP
from growclip_ds.data.pictures import MEAN, STD
from growclip_ds.errors import InputError

_PIXELS = {"image_mean": MEAN, "image_std": STD}


def read_clip_config(folder: Path | str) -> CLIPConfig:
    """The configuration of a CLIP checkpoint in Hugging Face format from which training is to start.

    Raises:
        InputError: the folder has no configuration of a CLIP, or the CLIP has dropout or does not use CLIP's pixel
            normalisation.
    """
    config = _outline(folder).config
    for tower in ("text_config", "vision_config"):
        if rate := getattr(config, tower).attention_dropout:
            raise InputError(
                f"{Path(folder) / 'config.json'}: {tower} has attention_dropout {rate}, but models are trained without "
                "dropout, so that an interrupted run resumes exactly; set it to 0.0"
            )
    require_pixels(folder)
    return config


def load_clip(folder: Path | str) -> FixedCLIP:
    """Loads a CLIP checkpoint in Hugging Face format (`config.json`, `*.safetensors`), in fp32 on the CPU.

    Raises:
        InputError: the folder has no such checkpoint, or a tensor is missing or does not have the configured shape.
    """
    model = _outline(folder).to_empty(device="cpu").float()
    with torch.no_grad():
        for parameter, read in _found(Path(folder), model):
            parameter.copy_(read().reshape(parameter.shape))
    # Position ids are buffers, not weights: no checkpoint file restores them, and `to_empty` leaves them undefined.
    for embeddings in (model.text_model.embeddings, model.vision_model.embeddings):
        embeddings.position_ids.copy_(torch.arange(embeddings.position_ids.shape[1]))
    return model


def outline_clip(folder: Path | str) -> FixedCLIP:
    """As `load_clip`, but on the meta device: of the weights only names and shapes are read.

    Raises:
        InputError: see `load_clip`.
    """
    model = _outline(folder)
    for _ in _found(Path(folder), model):
        pass
    return model


def require_pixels(folder: Path | str) -> None:
    """Checks that a checkpoint's model takes images normalised as they are here, if the checkpoint states it.

    Raises:
        InputError: its `preprocessor_config.json` states another normalisation, or is damaged.
    """
    file = Path(folder) / "preprocessor_config.json"
    try:
        stated = json.loads(file.read_text(encoding="utf-8"))
        given = {name: tuple(map(float, stated.get(name, ours))) for name, ours in _PIXELS.items()}
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: cannot be read ({error}); copy the checkpoint again") from error
    for name, ours in _PIXELS.items():
        theirs = given[name]
        if len(theirs) != len(ours) or any(abs(a - b) > 1e-3 for a, b in zip(theirs, ours, strict=True)):
            raise InputError(
                f"{file}: {name} is {theirs}, but images are normalised with CLIP's {ours}: the model would see "
                "other pixels than in training; use one that was trained with these"
            )


def _outline(folder: Path | str) -> FixedCLIP:
    """The model that a folder's configuration describes, on the meta device."""
    with _explained(folder), torch.device("meta"):
        stated, _ = CLIPConfig.get_config_dict(Path(folder))
        if stated.get("model_type", CLIPConfig.model_type) != CLIPConfig.model_type:  # transformers only warns
            raise ValueError(f"its model_type is {stated['model_type']!r}")
        return FixedCLIP(CLIPConfig.from_dict(stated))


def _found(folder: Path, model: nn.Module) -> Iterator[tuple[nn.Parameter, Callable[[], Tensor]]]:
    """Yields every parameter with a function that reads its value, valid until the next one is yielded."""
    missing = dict(model.named_parameters())
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in missing.keys() & tensors.keys():
                    parameter = missing.pop(name)
                    _require_shape(parameter, tuple(tensors.get_slice(name).get_shape()), f"{file}: {name}")
                    yield parameter, partial(tensors.get_tensor, name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file}: cannot be read ({error}); copy the checkpoint again") from error
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} tensors are in no *.safetensors, such as {min(missing)}; "
            "copy the checkpoint again, or save it with transformers as safetensors"
        )


def _weight_files(folder: Path) -> list[Path]:
    """The files that `transformers` loads, as a folder may also hold the weights in other precisions; otherwise all."""
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    try:
        return [folder / name for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: cannot be read ({error}); copy the checkpoint again") from error


@contextlib.contextmanager
def _explained(folder: Path | str) -> Iterator[None]:
    """Turns errors into an `InputError` that names the folder's configuration."""
    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{Path(folder) / 'config.json'}: not the configuration of a CLIP model ({reason})") from error


def _require_shape(parameter: nn.Parameter, shape: tuple[int, ...], what: str) -> None:
    if (shape or (1,)) != parameter.shape:  # the temperature is a scalar in the file
        raise InputError(
            f"{what} has shape {shape}, but config.json beside it needs {tuple(parameter.shape)}; "
            "the weights and the configuration belong to different models"
        )
