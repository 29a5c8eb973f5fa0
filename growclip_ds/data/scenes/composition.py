"""Random scenes: what an image shows, from which both the image and its caption are generated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from growclip_ds.data.scenes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    NEUTRAL,
    RGB,
    SIZES,
    TEXTURES,
    TRAINING,
    Combination,
)

LEAST_CONTRAST = 95.0  # minimum RGB distance between an object and the background


@dataclass(frozen=True)
class Look:
    """The attributes of an object that a caption can mention, and that several objects may share."""

    colour: str
    shape: str
    texture: str
    size: str

    @property
    def combination(self) -> Combination:
        return Combination(self.colour, self.shape)


@dataclass(frozen=True)
class Thing:
    """An object of a scene; its centre (from the top left) and radius are fractions of the image's side."""

    look: Look
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Background:
    """A background: its kind, one of BACKGROUNDS, and colour, of tone "pale", "dark" or, if neutral, ""."""

    kind: str
    tone: str
    colour: str

    @property
    def rgb(self) -> RGB:
        rgb = COLOURS[self.colour]
        if self.tone == "pale":
            return mix(rgb, (255, 255, 255), 0.62)
        return mix(rgb, (0, 0, 0), 0.6) if self.tone == "dark" else rgb


@dataclass(frozen=True)
class Scene:
    """One to four things on a background; things of the same look are adjacent in the tuple."""

    things: tuple[Thing, ...]
    background: Background

    @property
    def groups(self) -> list[list[Thing]]:
        """The things, grouped by look."""
        groups: dict[Look, list[Thing]] = {}
        for thing in self.things:
            groups.setdefault(thing.look, []).append(thing)
        return list(groups.values())


def mix(rgb: RGB, other: RGB, share: float) -> RGB:
    """Mixes a share (0 to 1) of the other colour into a colour."""
    r, g, b = ((1 - share) * mine + share * theirs for mine, theirs in zip(rgb, other, strict=True))
    return r, g, b


def compose(rng: Random, combinations: Sequence[Combination] = TRAINING, fewest: int = 1) -> Scene:
    """A random scene of `fewest` to four things, with colours and shapes from the combinations.

    Half of the scenes have a single thing, usually large; the others have a group of equal things, several different
    ones, or both, of any sizes that fit.
    """
    plans, weights = zip(*(item for item in _PLANS if sum(item[0]) >= fewest), strict=True)
    counts = rng.choices(plans, weights)[0]
    sizes = _MOSTLY_LARGE if counts == (1,) else _ANY_SIZE
    return _lay_out(rng, _combinations(rng, combinations, len(counts)), counts, [sizes] * len(counts))


def compose_class(rng: Random, combination: Combination) -> Scene:
    """A random scene dominated by one thing of the combination; one in eight has a small second thing."""
    others = [other for other in TRAINING if combination.colour != other.colour and combination.shape != other.shape]
    if rng.random() < 7 / 8:
        return _lay_out(rng, [combination], [1], [_DOMINANT])
    return _lay_out(rng, [combination, rng.choice(others)], [1, 1], [_DOMINANT, _SMALL])


_PLANS: list[tuple[tuple[int, ...], float]] = [  # number of things of each look, and the weight of the plan
    ((1,), 0.5),
    ((2,), 0.05),
    ((3,), 0.04),
    ((4,), 0.03),
    ((1, 1), 0.2),
    ((1, 1, 1), 0.06),
    ((2, 1), 0.04),
    ((1, 2), 0.03),
    ((1, 3), 0.03),
    ((2, 2), 0.02),
]

SizeWeights = tuple[float, float, float]  # weights of small, medium and large
_MOSTLY_LARGE, _ANY_SIZE, _DOMINANT, _SMALL = (1, 2, 6), (1, 1, 1), (0, 1, 5), (1, 0, 0)


def _combinations(rng: Random, among: Sequence[Combination], count: int) -> list[Combination]:
    """Different combinations; with probability 1/3, those after the first share its colour or its shape."""
    first = rng.choice(among)
    similar = [c for c in among if c != first and (c.colour == first.colour or c.shape == first.shape)]
    different = [c for c in among if c.colour != first.colour and c.shape != first.shape]
    return [first, *rng.sample(similar if rng.random() < 1 / 3 else different, count - 1)]


def _lay_out(
    rng: Random,
    combinations: Sequence[Combination],
    counts: Sequence[int],
    sizes: Sequence[SizeWeights],
) -> Scene:
    """Draws textures, sizes and places until everything fits, and a background with enough contrast."""
    while True:
        looks = []
        for combination, weights in zip(combinations, sizes, strict=True):
            texture = "plain" if rng.random() < 0.6 else rng.choice(TEXTURES[1:])
            looks.append(Look(*combination, texture, rng.choices(tuple(SIZES), weights)[0]))
        each = [look for look, count in zip(looks, counts, strict=True) for _ in range(count)]
        radii = [rng.uniform(*SIZES[look.size]) for look in each]
        places = _places(rng, radii)
        if places is not None:
            break
    things = tuple(Thing(look, x, y, radius) for look, (x, y), radius in zip(each, places, radii, strict=True))
    return Scene(things, _background(rng, [COLOURS[look.colour] for look in looks]))


def _places(rng: Random, radii: Sequence[float]) -> list[tuple[float, float]] | None:
    """Random centres of disjoint discs within the unit square; None if no room was found for one of them."""
    places: list[tuple[float, float]] = []
    for radius in radii:
        for _ in range(30):
            x, y = (rng.uniform(radius * 1.02, 1 - radius * 1.02) for _ in range(2))
            apart = (
                math.hypot(x - other_x, y - other_y) > radius + other
                for (other_x, other_y), other in zip(places, radii, strict=False)
            )
            if all(apart):
                places.append((x, y))
                break
        else:
            return None
    return places


def _background(rng: Random, colours: Sequence[RGB]) -> Background:
    while True:
        colour = rng.choice(NEUTRAL) if rng.random() < 0.35 else rng.choice(list(COLOURS))
        tone = "" if colour in NEUTRAL else rng.choice(("pale", "dark"))
        background = Background(rng.choices(BACKGROUNDS, (4, 3, 1, 1, 1))[0], tone, colour)
        if all(math.dist(background.rgb, other) > LEAST_CONTRAST for other in colours):
            return background
