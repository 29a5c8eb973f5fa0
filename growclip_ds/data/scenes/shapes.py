"""Outlines of the shapes: polygons around the origin, within a circle of radius 1, with y pointing down."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

Polygon = np.ndarray  # (n, 2)


class Shape(NamedTuple):
    """A filled outline with holes.

    Attributes:
        outline: (n, 2) corners.
        hole: (n, 2) corners of the part that is cut out; None: nothing is.
    """

    outline: Polygon
    hole: Polygon | None = None


def _arc(
    radius: float, start: float, stop: float, centre: tuple[float, float] = (0.0, 0.0), points: int = 36
) -> Polygon:
    """Points on a circle from one angle to another, in degrees, (points, 2)."""
    angles = np.radians(np.linspace(start, stop, points))
    return np.stack([centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)], axis=1)


def _regular(
    corners: int, radius: float = 1.0, start: float = -90.0, centre: tuple[float, float] = (0.0, 0.0)
) -> Polygon:
    return _arc(radius, start, start + 360 * (corners - 1) / corners, centre, points=corners)


def _star() -> Polygon:
    star = np.empty((10, 2))
    star[0::2] = _regular(5)
    star[1::2] = _regular(5, 0.42, -90 + 36)
    return star


def _flower() -> Polygon:
    angles = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    radius = 0.78 + 0.22 * np.cos(6 * angles)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _cross() -> Polygon:
    a, b = 0.3, 0.92
    quarter = np.array([(a, -b), (a, -a), (b, -a)])
    turns = [np.array([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]]) for t in np.arange(4) * math.pi / 2]
    return np.concatenate([quarter @ turn.T for turn in turns])


def _heart() -> Polygon:
    t = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2.5], axis=1) / 16


def _drop() -> Polygon:
    return np.concatenate([[(0.0, -1.0)], _arc(0.6, -28, 208, (0.0, 0.38))])


def _crescent() -> Polygon:
    # The tips are where the two circles meet; the inner arc runs back from one to the other.
    outer = _arc(0.95, 52, 308)
    tip_x, tip_y = outer[-1]
    centre_x = 0.42
    reach = math.hypot(tip_x - centre_x, tip_y)
    tip = math.degrees(math.atan2(-tip_y, tip_x - centre_x))
    return np.concatenate([outer, _arc(reach, 360 - tip, tip, (centre_x, 0.0))])


def _arrow() -> Polygon:
    return np.array([(-0.95, -0.24), (0.1, -0.24), (0.1, -0.66), (0.98, 0), (0.1, 0.66), (0.1, 0.24), (-0.95, 0.24)])


OUTLINES: dict[str, Shape] = {
    "circle": Shape(_arc(0.9, 0, 350)),
    "square": Shape(_regular(4, 1.1, 45)),
    "triangle": Shape(_regular(3, 1.05, centre=(0.0, 0.16))),
    "hexagon": Shape(_regular(6, 0.97)),
    "star": Shape(_star()),
    "flower": Shape(_flower()),
    "cross": Shape(_cross()),
    "heart": Shape(_heart()),
    "drop": Shape(_drop()),
    "crescent": Shape(_crescent()),
    "ring": Shape(_arc(0.95, 0, 350), _arc(0.55, 0, 350)),
    "arrow": Shape(_arrow()),
}
