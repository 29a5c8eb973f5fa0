"""Captions: their length, their variety, and that they say nothing false or held out."""

from __future__ import annotations

import re
import statistics
from random import Random

import pytest

from growclip_ds.data.scenes.composition import Background, Look, Scene, Thing, compose
from growclip_ds.data.scenes.grammar import _SYNONYMS, article, describe
from growclip_ds.data.scenes.vocabulary import COLOURS, HELD_OUT, SHAPES

SCENES = [compose(Random(index)) for index in range(3000)]
CAPTIONS = [describe(scene, Random(index)) for index, scene in enumerate(SCENES)]


WORDS = {word: name for name in (*COLOURS, *SHAPES) for word in _SYNONYMS.get(name, (name,))}
PAIR = re.compile(
    rf"\b({'|'.join(word for word, name in WORDS.items() if name in COLOURS)}) "
    rf"({'|'.join(word for word, name in WORDS.items() if name in SHAPES)})(?:s|es)?\b"
)

RELATION = r"(?:above|over|below|under)(?: and to the \w+ of)?|to the \w+ of"
SAID_OF_THE_STAR = re.compile(rf"red (?:star|shape|figure) (?:is )?({RELATION}) (?:the|an?|one) ")


def pairs_said(caption: str) -> set[tuple[str, str]]:
    """Colours said right before a shape."""
    return {(WORDS[colour], WORDS[shape]) for colour, shape in PAIR.findall(caption.lower())}


def test_four_to_sixty_words_around_twenty_on_one_line() -> None:
    words = [len(caption.split()) for caption in CAPTIONS]
    assert min(words) >= 4
    assert max(words) <= 60
    assert 16 < statistics.mean(words) < 24
    assert min(words) < 6
    assert max(words) > 50
    assert not any("\n" in caption or "  " in caption or " ," in caption for caption in CAPTIONS)


def test_captions_vary() -> None:
    assert len(set(CAPTIONS)) > 0.97 * len(CAPTIONS)
    scene = next(scene for scene in SCENES if len(scene.groups) == 2)
    assert len({describe(scene, Random(index)) for index in range(200)}) > 150


def test_pairs_said_are_those_shown_and_mostly_said() -> None:
    said = 0
    for scene, caption in zip(SCENES, CAPTIONS, strict=True):
        shown = {tuple(thing.look.combination) for thing in scene.things}
        pairs = pairs_said(caption)
        assert pairs <= shown, caption
        assert not pairs & {tuple(combination) for combination in HELD_OUT}
        said += bool(pairs)
    assert said > 0.85 * len(SCENES)


def test_some_captions_speak_of_the_background_and_some_do_not() -> None:
    words = ("background", "backdrop", "ground")
    share = statistics.mean(any(word in caption for word in words) for caption in CAPTIONS)
    assert 0.25 < share < 0.75


@pytest.mark.parametrize(
    ("x", "y", "relation"),
    [
        (0.2, 0.5, "to the left of"),
        (0.8, 0.5, "to the right of"),
        (0.5, 0.2, "(above|over)"),
        (0.5, 0.8, "(below|under)"),
        (0.2, 0.2, "(above|over) and to the left of"),
    ],
)
def test_relations_are_as_drawn(x: float, y: float, relation: str) -> None:
    star = Thing(Look("red", "star", "plain", "small"), x, y, 0.14)
    ring = Thing(Look("blue", "ring", "plain", "small"), 0.5, 0.5, 0.14)
    scene = Scene((star, ring), Background("plain", "", "white"))
    said = 0
    for index in range(400):
        for sentence in re.split(r"[.:]", describe(scene, Random(index)).lower()):
            related = SAID_OF_THE_STAR.search(sentence)
            if related:
                assert re.fullmatch(relation, related[1]), sentence
                said += 1
    assert said > 20


def test_a_group_is_counted() -> None:
    look = Look("green", "cross", "striped", "small")
    scene = Scene(tuple(Thing(look, x, 0.5, 0.14) for x in (0.2, 0.5, 0.8)), Background("plain", "", "white"))
    captions = [describe(scene, Random(index)) for index in range(100)]
    assert all("three" in caption.lower() for caption in captions)
    assert any("crosses" in caption for caption in captions)


def test_article() -> None:
    assert [article("orange ring"), article("red ring")] == ["an orange ring", "a red ring"]
