"""Scenes: what training may show, that things stand apart, and that a background is always found."""

from __future__ import annotations

import itertools
import math
from random import Random

from growclip_ds.data.scenes.composition import LEAST_CONTRAST, Background, compose, compose_class
from growclip_ds.data.scenes.vocabulary import COLOURS, HELD_OUT, NEUTRAL, OBJECT_CLASSES, SIZES, TRAINING

SCENES = [compose(Random(index)) for index in range(3000)]


def test_training_scenes_show_every_training_combination_and_no_held_out_one() -> None:
    shown = {thing.look.combination for scene in SCENES for thing in scene.things}
    assert shown == set(TRAINING)
    assert not shown & set(HELD_OUT)


def test_scenes_have_one_to_four_things() -> None:
    counts = [len(scene.things) for scene in SCENES]
    assert set(counts) == {1, 2, 3, 4}
    assert 0.45 < counts.count(1) / len(SCENES) < 0.55
    assert {len(compose(Random(index), fewest=3).things) for index in range(50)} == {3, 4}


def test_things_are_as_large_as_said_within_the_picture_and_apart() -> None:
    for scene in SCENES:
        for thing in scene.things:
            least, most = SIZES[thing.look.size]
            assert least <= thing.radius <= most
            assert thing.radius <= min(thing.x, thing.y) <= max(thing.x, thing.y) <= 1 - thing.radius
        for one, other in itertools.combinations(scene.things, 2):
            assert math.hypot(one.x - other.x, one.y - other.y) > one.radius + other.radius


def test_groups_hold_all_things_by_their_look() -> None:
    for scene in SCENES[:300]:
        assert sorted(map(id, itertools.chain(*scene.groups))) == sorted(map(id, scene.things))
        assert all(len({thing.look for thing in group}) == 1 for group in scene.groups)
        assert len({group[0].look.combination for group in scene.groups}) == len(scene.groups)


def test_a_background_can_be_told_from_any_three_colours() -> None:
    backgrounds = [
        Background("plain", tone, colour)
        for colour in COLOURS
        for tone in ([""] if colour in NEUTRAL else ["pale", "dark"])
    ]
    for colours in itertools.combinations(COLOURS.values(), 3):
        assert any(all(math.dist(b.rgb, rgb) > LEAST_CONTRAST for rgb in colours) for b in backgrounds)


def test_the_class_dominates_its_picture() -> None:
    alone = 0
    for index, combination in enumerate(OBJECT_CLASSES * 5):
        first, *others = compose_class(Random(index), combination).things
        assert first.look.combination == combination
        assert all(other.radius < first.radius and other.look.combination not in HELD_OUT for other in others)
        alone += not others
    assert 0.8 < alone / (5 * len(OBJECT_CLASSES)) < 0.95
