"""What the built-in images consist of, and which combinations are held out of training.

There are twelve colours and twelve shapes, so the 144 combinations form twelve *diagonals* of twelve: combination
(colour i, shape j) is on diagonal (j - i) mod 12, and every diagonal has each colour once and each shape once. Sets of
classes consist of whole diagonals, so that knowing only the colour, or only the shape, always leaves the same number of
candidate classes.
"""

from __future__ import annotations

from typing import NamedTuple

RGB = tuple[float, float, float]

COLOURS: dict[str, RGB] = {
    "red": (212, 36, 36),
    "orange": (246, 136, 22),
    "yellow": (246, 220, 44),
    "green": (46, 154, 58),
    "turquoise": (52, 200, 196),
    "blue": (38, 78, 208),
    "purple": (128, 52, 176),
    "pink": (246, 134, 188),
    "brown": (124, 74, 36),
    "black": (26, 26, 28),
    "grey": (130, 130, 132),
    "white": (246, 246, 244),
}
NEUTRAL = ("black", "grey", "white")

SHAPES = (
    "circle",
    "square",
    "triangle",
    "hexagon",
    "star",
    "flower",
    "cross",
    "heart",
    "drop",
    "crescent",
    "ring",
    "arrow",
)
TEXTURES = ("plain", "striped", "dotted", "checkered", "glossy")
SIZES: dict[str, tuple[float, float]] = {  # range of the radius, as fractions of the image's side
    "small": (0.13, 0.16),
    "medium": (0.22, 0.27),
    "large": (0.35, 0.44),
}
BACKGROUNDS = ("plain", "gradient", "striped", "checkered", "cloudy")


class Combination(NamedTuple):
    """A colour and a shape: a class, and the unit that is seen in training or held out."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


def _diagonals(*numbers: int) -> tuple[Combination, ...]:
    colours = list(COLOURS)
    return tuple(
        Combination(colour, SHAPES[(i + number) % len(SHAPES)])
        for i, colour in enumerate(colours)
        for number in numbers
    )


HELD_OUT = _diagonals(0, 6)
"""Combinations that do not occur in images or captions of the training data."""

TRAINING = _diagonals(1, 2, 3, 4, 5, 7, 8, 9, 10, 11)
OBJECT_CLASSES = _diagonals(0, 2, 4, 7, 9)
"""Classes of the reported evaluation set: 60, a fifth of them held out of training."""

SELECTION_CLASSES = _diagonals(6, 1, 3, 8, 10)
"""Classes of the set for selecting architectures: 60 others, a fifth of them held out of training."""
