"""English captions of 4 to 60 words for a scene: terse labels, single sentences, or several sentences.

A caption is true of its scene but seldom complete: sizes, textures, places and the background are often omitted, and
sometimes a colour, a shape or a whole object.
"""

from __future__ import annotations

import itertools
import math
from random import Random

from growclip_ds.data.scenes.composition import Background, Scene, Thing
from growclip_ds.data.scenes.vocabulary import SIZES

FEWEST_WORDS, MOST_WORDS = 4, 60

Group = list[Thing]  # things of the same look

_SYNONYMS: dict[str, tuple[str, ...]] = {  # the first one is the most frequent
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "flower": ("flower", "blossom"),
    "cross": ("cross", "plus sign"),
    "drop": ("drop", "teardrop"),
    "crescent": ("crescent", "moon"),
    "ring": ("ring", "hoop"),
    "red": ("red", "crimson"),
    "turquoise": ("turquoise", "cyan"),
    "purple": ("purple", "violet"),
    "grey": ("grey", "gray"),
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered", "checked"),
    "glossy": ("glossy", "shiny"),
    "cloudy": ("cloudy", "mottled"),
    "gradient": ("shaded", "fading"),
    "small": ("small", "little", "tiny"),
    "medium": ("medium-sized", "mid-sized"),
    "large": ("large", "big", "huge"),
}
_BEHIND = {  # phrases after the noun, instead of the texture before it
    "striped": ("with stripes", "with a striped pattern"),
    "dotted": ("with dots", "covered in dots"),
    "checkered": ("with a checkered pattern", "covered in checks"),
    "glossy": ("with a glossy surface", "with a highlight"),
}
_NUMBERS = {1: ("one", "a single"), 2: ("two", "a pair of"), 3: ("three",), 4: ("four",)}


def describe(scene: Scene, rng: Random) -> str:
    """A random caption of the scene, of 4 to 60 words and without line breaks."""
    groups = scene.groups
    rng.shuffle(groups)
    style = rng.choices((_label, _sentence, _account), (0.14, 0.33, 0.53))[0]
    text = style(scene, groups, rng)
    if len(text.split()) < FEWEST_WORDS:
        text = f"a picture of {text}"
    return text


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _word(word: str, rng: Random) -> str:
    first, *others = _SYNONYMS.get(word, (word,))
    return rng.choice(others) if others and rng.random() < 0.18 else first


def _plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith(("s", "x")) else f"{noun}s"


def _noun(group: Group, rng: Random, detail: float, known: bool = False) -> str:
    """Attributes and noun, such as "small striped red circles".

    Args:
        group: the things to name.
        rng: source of the random choices.
        detail: probability of mentioning the size; that of the texture depends on it too.
        known: whether the group was mentioned before: it is then named by its colour and shape, which are unique
            together, and nothing follows the noun.
    """
    look = group[0].look
    words = []
    if rng.random() < detail:
        words.append(_word(look.size, rng))
    tail = ""
    if look.texture == "plain":
        if rng.random() < 0.25 * detail:
            words.append(_word("plain", rng))
    elif rng.random() < 0.3 + detail:
        if not known and rng.random() < 0.3:
            tail = f" {rng.choice(_BEHIND[look.texture])}"
        else:
            words.append(_word(look.texture, rng))
    # Either the colour or the shape may be left unsaid, never both.
    left_out = 0.5 if known else rng.random()
    if left_out > 0.05:
        words.append(_word(look.colour, rng))
    noun = _word(look.shape, rng) if left_out < 0.95 else rng.choice(("shape", "figure"))
    words.append(_plural(noun) if len(group) > 1 else noun)
    return " ".join(words) + tail


def _some(group: Group, rng: Random, detail: float) -> str:
    """The group, not mentioned before: "a red circle", "three small stars"."""
    noun = _noun(group, rng, detail)
    if len(group) == 1 and rng.random() < 0.8:
        return article(noun)
    return f"{rng.choice(_NUMBERS[len(group)])} {noun}"


def _the(group: Group, rng: Random) -> str:
    """The group, mentioned before: "the red circle"."""
    return f"the {_noun(group, rng, 0.1, known=True)}"


def _be(group: Group) -> str:
    return "is" if len(group) == 1 else "are"


def _listed(phrases: list[str]) -> str:
    *first, last = phrases
    return f"{', '.join(first)} and {last}" if first else last


def _where(x: float, y: float, rng: Random) -> str:
    """Describes the place of a point of the image; (0, 0) is the top left corner and (1, 1) the bottom right."""
    across = "left" if x < 0.38 else "right" if x > 0.62 else ""
    down = "top" if y < 0.38 else "bottom" if y > 0.62 else ""
    if across and down:
        return rng.choice((f"in the {down} {across} corner", f"at the {down} {across}", f"near the {down} {across}"))
    if across:
        return rng.choice((f"on the {across}", f"on the {across} side", f"at the {across}"))
    if down:
        return rng.choice((f"at the {down}", f"near the {down}"))
    return rng.choice(("in the middle", "in the centre", "near the centre"))


def _relation(one: Thing, other: Thing, rng: Random) -> str:
    """Where the first thing is relative to the second."""
    dx, dy = one.x - other.x, one.y - other.y
    across = "to the left of" if dx < 0 else "to the right of"
    down = rng.choice(("above", "over")) if dy < 0 else rng.choice(("below", "under"))
    if abs(dx) > 1.6 * abs(dy):
        return across
    return down if abs(dy) > 1.6 * abs(dx) else f"{down} and {across}"


def _setting(background: Background, rng: Random) -> str:
    """The background as a phrase: "on a pale blue background"."""
    words = [word for word in (background.tone, _word(background.colour, rng)) if word]
    if background.kind != "plain" and rng.random() < 0.7:
        words.insert(rng.choice((0, len(words))), _word(background.kind, rng))
    noun = rng.choice(("background", "background", "backdrop", "ground"))
    return f"{rng.choice(('on', 'on', 'against', 'in front of'))} {article(' '.join([*words, noun]))}"


def _label(scene: Scene, groups: list[Group], rng: Random) -> str:
    text = _listed([_some(group, rng, 0.4) for group in groups])
    return f"{text} {_setting(scene.background, rng)}" if rng.random() < 0.3 else text


def _sentence(scene: Scene, groups: list[Group], rng: Random) -> str:
    if len(groups) > 1 and rng.random() < 0.2:
        groups = groups[:-1]
    if len(groups) == 2 and all(len(group) == 1 for group in groups) and rng.random() < 0.6:
        relation = _relation(groups[0][0], groups[1][0], rng)
        listed = f"{_some(groups[0], rng, 0.4)} {relation} {_some(groups[1], rng, 0.4)}"
    else:
        relation = ""
        listed = _listed([_some(group, rng, 0.5) for group in groups])
    alone = len(groups) == 1 and len(groups[0]) == 1
    be = "is" if alone or relation else "are"
    place = f" {_where(groups[0][0].x, groups[0][0].y, rng)}" if alone and rng.random() < 0.5 else ""
    setting = f" {_setting(scene.background, rng)}" if rng.random() < 0.5 else ""
    frame = rng.choice(
        (
            f"A picture of {listed}{place}{setting}.",
            f"A drawing with {listed}{place}{setting}.",
            f"An image of {listed}{place}{setting}.",
            f"There {_be(groups[0])} {listed}{place}{setting}.",
            f"This picture shows {listed}{place}{setting}.",
            f"{listed.capitalize()} {be} drawn{place}{setting}.",
            f"{listed.capitalize()} can be seen{place}{setting}.",
        )
    )
    return frame if rng.random() < 0.6 else frame[0].lower() + frame[1:-1]


def _account(scene: Scene, groups: list[Group], rng: Random) -> str:
    """Three to seven sentences, fewer if they would exceed the maximum of words; the first one names the things."""
    count = len(scene.things)
    sentences = [_overview(groups, count, rng)]
    more = []
    for group in groups:
        shared = sum(other[0].look.shape == group[0].look.shape for other in groups) > 1
        more.append(_detail(group, shared, rng))
    for one, other in itertools.pairwise(groups):
        if len(one) == len(other) == 1:
            more.append(f"{_the(one, rng)} is {_relation(one[0], other[0], rng)} {_the(other, rng)}.")
        sizes = [SIZES[group[0].look.size] for group in (one, other)]
        if sizes[0] != sizes[1] and rng.random() < 0.4:
            degree = rng.choice(("larger", "bigger")) if sizes[0] > sizes[1] else "smaller"
            more.append(f"{_the(one, rng)} {_be(one)} {degree} than {_the(other, rng)}.")
    more.append(_ground(scene.background, count, rng))
    if rng.random() < 0.25:
        more.append(rng.choice(("there is nothing else to see.", "nothing else is in the picture.", "that is all.")))
    kept = sorted(rng.sample(range(len(more)), rng.randint(2, min(len(more), 6))))
    words = len(sentences[0].split())
    for sentence in (more[i] for i in kept):
        words += len(sentence.split())
        if words > MOST_WORDS:
            break
        sentences.append(sentence)
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _overview(groups: list[Group], count: int, rng: Random) -> str:
    listed = _listed([_some(group, rng, 0.3) for group in groups])
    things = f"{rng.choice(_NUMBERS[count])} {'object' if count == 1 else 'objects'}"
    return rng.choice(
        (
            f"there {_be(groups[0])} {listed} in the picture.",
            f"the picture shows {listed}.",
            f"a picture with {listed}.",
            f"{listed}.",
            f"we see {listed}.",
            f"the drawing has {things}: {listed}.",
        )
    )


def _detail(group: Group, shared: bool, rng: Random) -> str:
    """A sentence about a group's place or look; `shared`: another group has the same shape."""
    look = group[0].look
    if len(group) == 1 and rng.random() < 0.6:
        return f"{_the(group, rng)} is {_where(group[0].x, group[0].y, rng)}."
    looks = [_word(look.size, rng)]
    if rng.random() < 0.7:
        looks.append(_word(look.texture, rng))
    noun = _word(look.shape, rng)
    if shared:
        noun = f"{_word(look.colour, rng)} {noun}"
    elif rng.random() < 0.4:
        looks.append(_word(look.colour, rng))
    spread = _spread(group) if len(group) > 1 else ""
    return f"the {_plural(noun) if len(group) > 1 else noun} {_be(group)} {_listed(looks)}{spread}."


def _spread(group: Group) -> str:
    """How the things of a group are arranged, such as "side by side"; empty if there is no clear arrangement."""
    wide = max(thing.x for thing in group) - min(thing.x for thing in group)
    high = max(thing.y for thing in group) - min(thing.y for thing in group)
    if wide > 2.5 * high:
        return ", side by side"
    if high > 2.5 * wide:
        return ", one above the other"
    return ", close together" if math.hypot(wide, high) < 0.45 else ""


def _ground(background: Background, count: int, rng: Random) -> str:
    colour = f"{background.tone} {_word(background.colour, rng)}".strip()
    kind = _word(background.kind, rng)
    it, them, be = ("it", "it", "is") if count == 1 else ("they", "them", "are")
    return rng.choice(
        (
            f"the background is {colour}.",
            f"the background is {kind} and {colour}.",
            f"behind {them} is {article(f'{kind} {colour}')} ground.",
            f"{it} {be} drawn on {article(f'{kind} {colour}')} background.",
        )
    )
