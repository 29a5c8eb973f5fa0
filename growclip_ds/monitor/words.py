"""Formatting of numbers, durations and architectures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple

from growclip_ds.architecture import Architecture

NONE = "–"  # in place of a missing value
SYMBOLS = ("l^I", "b^I", "h^I", "b^T", "h^T", "b^S")
LEGEND = "l^I convolutions, b^I h^I image and b^T h^T text blocks and heads, b^S shared blocks"


def duration(seconds: float) -> str:
    """`0:42`, `12:03`, `1:02:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def millions(parameters: int) -> str:
    """`30.03 M`."""
    return f"{parameters / 1e6:.2f} M"


def smallest(architectures: Iterable[Architecture]) -> Architecture:
    """The largest architecture that all of them cover; for a growth space, its base."""
    return Architecture(*map(min, zip(*map(astuple, architectures), strict=True)))


def grown(architecture: Architecture, base: Architecture) -> str:
    """The dimensions in which an architecture is larger than another: `l^I h^T`, or `nothing`."""
    names = [
        symbol for symbol, new, old in zip(SYMBOLS, astuple(architecture), astuple(base), strict=True) if new > old
    ]
    return " ".join(names) or "nothing"
