"""Pictures: every shape, texture and background draws; what is said to be there is seen; nuisances vary."""

from __future__ import annotations

import io
from random import Random

import numpy as np
import pytest
from PIL import Image

from growclip_ds.data.scenes.composition import Background, Look, Scene, Thing
from growclip_ds.data.scenes.drawing import draw, encode_jpeg
from growclip_ds.data.scenes.shapes import OUTLINES
from growclip_ds.data.scenes.vocabulary import BACKGROUNDS, COLOURS, SHAPES, TEXTURES

WHITE = Background("plain", "", "white")
BLACK = Background("plain", "", "black")


def picture(
    look: Look, background: Background = WHITE, radius: float = 0.35, seed: int = 0, size: int = 64
) -> np.ndarray:
    scene = Scene((Thing(look, 0.5, 0.5, radius),), background)
    return np.asarray(draw(scene, size, Random(seed)), np.float32)


def covered(shape: str, seed: int = 0) -> float:
    """Share of the disc around the thing that differs from a white background."""
    pixels = picture(Look("red", shape, "plain", "large"), seed=seed)
    return (pixels[..., 1] < 128).sum() / (np.pi * (0.35 * 64) ** 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_are_of_like_size_and_fill_part_of_their_disc(shape: str) -> None:
    outline = OUTLINES[shape].outline
    assert 0.85 < np.linalg.norm(outline, axis=1).max() < 1.15
    assert 0.2 < covered(shape) < 0.95


def test_a_ring_has_a_hole_and_a_circle_none() -> None:
    ring, circle = (picture(Look("blue", shape, "plain", "large")) for shape in ("ring", "circle"))
    assert ring[32, 32].min() > 180  # white through the hole
    assert circle[32, 32, 0] < 100


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_are_nearest_to_their_own_name(colour: str) -> None:
    background = WHITE if sum(COLOURS[colour]) < 500 else BLACK
    distances = dict.fromkeys(COLOURS, 0.0)
    for seed in range(20):
        middle = picture(Look(colour, "square", "plain", "large"), background, seed=seed)[26:38, 26:38].mean((0, 1))
        for name, rgb in COLOURS.items():
            distances[name] += float(np.linalg.norm(middle - rgb))
    assert min(distances, key=distances.__getitem__) == colour


@pytest.mark.parametrize("texture", TEXTURES)
def test_only_plain_things_are_even(texture: str) -> None:
    look = Look("blue", "circle", texture, "large")
    contrast = np.median([picture(look, seed=seed)[24:40, 24:40].std((0, 1)).max() for seed in range(15)])
    assert contrast < 12 if texture == "plain" else contrast > 15


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_only_plain_backgrounds_are_even(kind: str) -> None:
    background = Background(kind, "pale", "green")
    edges = [picture(Look("red", "star", "plain", "small"), background, 0.14, seed)[:16] for seed in range(15)]
    contrast = np.median([edge.std((0, 1)).max() for edge in edges])
    assert contrast < 12 if kind == "plain" else contrast > 5


@pytest.mark.parametrize("size", [32, 96, 225])
def test_any_size_shows_the_same_at_its_scale(size: int) -> None:
    pixels = picture(Look("black", "heart", "plain", "large"), size=size)
    assert pixels.shape == (size, size, 3)
    assert 0.1 < (pixels.mean(2) < 128).mean() < 0.35


def test_pictures_of_a_scene_differ_by_their_seed_alone() -> None:
    look = Look("red", "arrow", "striped", "large")
    assert np.array_equal(picture(look, seed=1), picture(look, seed=1))
    assert not np.array_equal(picture(look, seed=1), picture(look, seed=2))


def test_jpegs_vary_in_quality() -> None:
    image = Image.fromarray(picture(Look("red", "arrow", "striped", "large")).astype(np.uint8))
    files = [encode_jpeg(image, Random(seed)) for seed in range(10)]
    assert len({len(file) for file in files}) > 5
    assert Image.open(io.BytesIO(files[0])).size == (64, 64)
