"""The sets of the built-in data; sample i of a set does not depend on which other samples are generated."""

from __future__ import annotations

import json
from dataclasses import asdict
from random import Random

from growclip_ds.data.scenes.composition import Scene, compose, compose_class
from growclip_ds.data.scenes.drawing import draw, encode_jpeg
from growclip_ds.data.scenes.grammar import describe
from growclip_ds.data.scenes.vocabulary import HELD_OUT, OBJECT_CLASSES, SELECTION_CLASSES, TRAINING, Combination

CLASSES: dict[str, tuple[Combination, ...]] = {
    "scenes_objects": OBJECT_CLASSES,
    "scenes_selection": SELECTION_CLASSES,
}
RETRIEVAL = "scenes_retrieval"
EVALUATION_SETS = (*CLASSES, RETRIEVAL)

TEMPLATES = (  # with "one" or "the", as "a" does not fit "orange", nor "an" "red"
    "one {c}.",
    "the {c}.",
    "a picture of one {c}.",
    "the picture shows one {c}.",
    "a drawing with one large {c}.",
    "one {c} on a plain background.",
)
CAPTIONS_PER_PICTURE = 3

Sample = dict[str, bytes]  # contents of a sample's files by extension


def training_sample(seed: int, subset: int, index: int, size: int, key: str) -> Sample:
    """Sample `index` of a training subset, in img2dataset's format: jpg, txt and json."""
    name = f"{seed}/train/{subset}/{index}"
    scene = compose(Random(f"{name}/scene"))
    caption = describe(scene, Random(f"{name}/caption"))
    record = {
        "key": key,
        "caption": caption,
        "status": "success",
        "error_message": None,
        "width": size,
        "height": size,
        "original_width": size,
        "original_height": size,
        "scene": _record(scene),
    }
    return {"jpg": _picture(scene, size, name), "txt": caption.encode(), "json": json.dumps(record).encode()}


def evaluation_sample(seed: int, dataset: str, index: int, size: int) -> Sample:
    """Sample `index` of one of EVALUATION_SETS: jpg with cls, or with txt, which holds one caption per line.

    Classes alternate, so their numbers of samples differ by at most one.
    """
    name = f"{seed}/{dataset}/{index}"
    rng = Random(f"{name}/scene")
    if dataset == RETRIEVAL:
        scene = compose(rng, (*TRAINING, *HELD_OUT), fewest=2)
        return {"jpg": _picture(scene, size, name), "txt": "\n".join(_captions(scene, name)).encode()}
    label = index % len(CLASSES[dataset])
    scene = compose_class(rng, CLASSES[dataset][label])
    return {"jpg": _picture(scene, size, name), "cls": str(label).encode()}


def _picture(scene: Scene, size: int, name: str) -> bytes:
    return encode_jpeg(draw(scene, size, Random(f"{name}/picture")), Random(f"{name}/jpeg"))


def _captions(scene: Scene, name: str) -> list[str]:
    rng = Random(f"{name}/caption")
    captions: list[str] = []
    while len(captions) < CAPTIONS_PER_PICTURE:
        caption = describe(scene, rng)
        if caption not in captions:
            captions.append(caption)
    return captions


def _record(scene: Scene) -> dict[str, object]:
    """The scene as values for the sample's json; lengths are fractions of the image's side."""
    things = [
        asdict(thing.look) | {place: round(getattr(thing, place), 3) for place in ("x", "y", "radius")}
        for thing in scene.things
    ]
    return {"things": things, "background": asdict(scene.background)}
