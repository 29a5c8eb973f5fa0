"""The exception for errors that the user can fix."""

from __future__ import annotations


class InputError(ValueError):
    """What the user gave cannot be used; the message names the file, key or value and the remedy."""
