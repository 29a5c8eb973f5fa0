"""config.json of an exported model. No torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from growclip_ds.architecture import Architecture
from growclip_ds.errors import InputError

CONFIG = "config.json"
MODEL_TYPE = "growclip"


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of an exported GrowCLIP.

    Raises:
        InputError: the folder holds no configuration, or that of another model.
    """
    config = read_object(folder / CONFIG)
    if config.get("model_type") != MODEL_TYPE:
        raise InputError(
            f"{folder / CONFIG}: a model of type {config.get('model_type')!r}, but only a GrowCLIP can grow; "
            "give a folder that `growclip export` has written"
        )
    return config


def read_growth(folder: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """The growth steps that a model has finished, each with its step, architecture, parameters and samples.

    Raises:
        InputError: the configuration describes them wrongly.
    """
    try:
        return [_growth_step(step) for step in config.get("growth") or []]
    except (KeyError, TypeError, ValueError) as error:
        raise invalid_config(folder, error) from error


def invalid_config(folder: Path, error: Exception) -> InputError:
    return InputError(f"{folder / CONFIG}: no valid GrowCLIP configuration ({error!r})")


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: the file does not exist, cannot be read, or holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; give a folder that `growclip export` has written") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}); copy the folder again") from error
    if not isinstance(value, dict):
        raise InputError(f"{file}: not a JSON object; copy the folder again")
    return value


def _growth_step(step: dict[str, Any]) -> dict[str, Any]:
    counts = {key: int(step[key]) for key in ("step", "parameters", "samples")}
    return counts | {"architecture": asdict(Architecture(**step["architecture"]))}
