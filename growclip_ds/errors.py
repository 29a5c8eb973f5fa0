"""The exception for errors in the user's input."""

from __future__ import annotations


class InputError(ValueError):
    """The user's input cannot be used; the message names the file, key or value and the remedy."""
