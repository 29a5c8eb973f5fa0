"""Writes a command's result to a file; JSON also, for `-`, to standard output in place of the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from growclip_ds.errors import InputError
from growclip_ds.files import write_text

STANDARD_OUTPUT = Path("-")


def check_place(place: Path | None) -> None:
    """Checks, before the work is done, that its result can be written to a file.

    Args:
        place: the file; None or `-`: there is nothing to check.

    Raises:
        InputError: the path is a folder, lies in something that is not a folder, or is invalid.
    """
    if place is None or place == STANDARD_OUTPUT:
        return
    try:
        if place.is_dir():
            raise InputError(f"{place} is a folder; name a file in it")
        parent = next(folder for folder in place.parents if folder.exists())
        if not parent.is_dir():
            raise InputError(f"{place} cannot be written ({parent} is not a folder); name another place")
    except OSError as error:  # for example, a name that is too long
        raise InputError(f"{place} cannot be written ({error.strerror}); name another place") from error


def put_json(place: Path, value: Any) -> None:
    """Writes a value as JSON to a file, atomically, or prints it if the file is `-`.

    Raises:
        InputError: the file cannot be written.
    """
    if place == STANDARD_OUTPUT:
        print(json.dumps(value, indent=2))
        return
    put_text(place, json.dumps(value, indent=2) + "\n")


def put_text(place: Path, text: str) -> None:
    """Writes text to a file, atomically.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        write_text(place, text)
    except OSError as error:
        raise InputError(f"{place} cannot be written ({error.strerror}); name another place") from error
