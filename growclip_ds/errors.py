"""The one exception for what a user can mend."""

from __future__ import annotations


class InputError(ValueError):
    """What the user gave cannot be used; the message names the file, key or value and the remedy."""
