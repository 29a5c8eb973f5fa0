"""Draws a scene: outlines rasterised by Pillow, textures and backgrounds as numpy fields, then light, noise and blur.

Everything that captions do not mention varies: hue, rotation, proportions, phase and direction of patterns, light,
blur, noise and JPEG quality.
"""

from __future__ import annotations

import io
import math
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from growclip_ds.data.scenes.composition import Scene, Thing, mix
from growclip_ds.data.scenes.shapes import OUTLINES
from growclip_ds.data.scenes.vocabulary import COLOURS, RGB

SUPERSAMPLING = 4
MOST_TURN = 20.0  # maximum rotation in degrees, either way
JITTER = 14.0  # maximum change of a channel of a colour, either way
WHITE, BLACK = (255.0, 255.0, 255.0), (0.0, 0.0, 0.0)

Field = np.ndarray  # (height, width) float32: the share of the second colour in each pixel, 0 to 1


def draw(scene: Scene, size: int, rng: Random) -> Image.Image:
    """Draws the scene as an RGB image of size × size pixels."""
    canvas = _background(scene, size, rng)
    for thing in scene.things:
        _paint(canvas, thing, rng)
    return _photograph(canvas, rng)


def encode_jpeg(picture: Image.Image, rng: Random) -> bytes:
    """Encodes the image as a JPEG of random quality between 60 and 95."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=rng.randint(60, 95))
    return buffer.getvalue()


def _jitter(rgb: RGB, rng: Random) -> RGB:
    r, g, b = (min(255.0, max(0.0, channel + rng.uniform(-JITTER, JITTER))) for channel in rgb)
    return r, g, b


def _blend(first: RGB, second: RGB, field: Field) -> np.ndarray:
    """Blends two colours, (h, w, 3): the first where the field is 0, the second where it is 1."""
    a, b = np.array(first, np.float32), np.array(second, np.float32)
    return a + field[..., None] * (b - a)


def _frame(height: int, width: int, centre: tuple[float, float], angle: float) -> tuple[Field, Field]:
    """Coordinates of the pixels' centres, in pixels relative to `centre`, along axes rotated by the angle (radians)."""
    y, x = np.ogrid[:height, :width]
    x, y = (x + 0.5 - centre[0]).astype(np.float32), (y + 0.5 - centre[1]).astype(np.float32)
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def _stripes(u: Field, period: float) -> Field:
    return np.clip(0.5 + 0.35 * period * np.sin(u * (2 * math.pi / period)), 0, 1)


def _checks(u: Field, v: Field, period: float) -> Field:
    waves = np.sin(u * (2 * math.pi / period)) * np.sin(v * (2 * math.pi / period))
    return np.clip(0.5 + 0.5 * period * waves, 0, 1)


def _dots(u: Field, v: Field, period: float) -> Field:
    across, down = (np.abs((c / period) % 1 - 0.5) for c in (u, v))
    return np.clip((0.32 - np.hypot(across, down)) * period + 0.5, 0, 1)


def _background(scene: Scene, size: int, rng: Random) -> np.ndarray:
    """The background's pixels, (size, size, 3) float32."""
    background = scene.background
    first = _jitter(background.rgb, rng)
    # The second tone is close to the first: patterns must neither look like objects nor hide them.
    second = mix(first, WHITE if sum(first) < 384 else BLACK, rng.uniform(0.12, 0.26))
    if background.kind == "plain":
        return np.tile(np.array(first, np.float32), (size, size, 1))
    if background.kind == "cloudy":
        cells = rng.randint(4, 7)
        coarse = Image.frombytes("L", (cells, cells), rng.randbytes(cells * cells))
        field = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255
        return _blend(first, second, field)
    u, v = _frame(size, size, (rng.uniform(0, size), rng.uniform(0, size)), rng.uniform(0, 2 * math.pi))
    if background.kind == "gradient":
        second = mix(first, WHITE if sum(first) < 384 else BLACK, rng.uniform(0.3, 0.45))
        return _blend(first, second, np.clip(u / (1.2 * size) + 0.5, 0, 1))
    period = size * rng.uniform(0.1, 0.22)
    return _blend(first, second, _stripes(u, period) if background.kind == "striped" else _checks(u, v, period))


def _paint(canvas: np.ndarray, thing: Thing, rng: Random) -> None:
    """Draws the thing onto the canvas (size, size, 3), in place."""
    size = len(canvas)
    shape = OUTLINES[thing.look.shape]
    angle = math.radians(rng.uniform(-MOST_TURN, MOST_TURN))
    centre, radius = (thing.x * size, thing.y * size), thing.radius * size
    scale = (radius * rng.uniform(0.88, 1.0), radius * rng.uniform(0.88, 1.0))
    left, top = (max(0, math.floor(c - 1.15 * radius)) for c in centre)
    right, bottom = (min(size, math.ceil(c + 1.15 * radius)) for c in centre)
    width, height = right - left, bottom - top
    centre = (centre[0] - left, centre[1] - top)

    mask = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    pen = ImageDraw.Draw(mask)
    turned = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    for polygon, fill in ((shape.outline, 255), (shape.hole, 0)):
        if polygon is not None:
            points = ((polygon * scale) @ turned + centre) * SUPERSAMPLING
            pen.polygon(points.ravel().tolist(), fill=fill)
    cover = np.asarray(mask.reduce(SUPERSAMPLING), np.float32)[..., None] / 255  # (height, width, 1)

    colour = _jitter(COLOURS[thing.look.colour], rng)
    surface = _surface(thing.look.texture, colour, _frame(height, width, centre, angle), radius, size, rng)
    patch = canvas[top:bottom, left:right]
    patch += cover * (surface - patch)


def _surface(
    texture: str, colour: RGB, frame: tuple[Field, Field], radius: float, size: int, rng: Random
) -> np.ndarray | RGB:
    u, v = frame
    if texture == "plain":
        return colour
    if texture == "glossy":
        reach = np.hypot(u + 0.35 * radius, v + 0.35 * radius) / radius
        return _blend(mix(colour, BLACK, 0.25), mix(colour, WHITE, 0.8), np.clip(1.0 - reach, 0, 1))
    luminance = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
    second = mix(colour, WHITE if luminance < 140 else BLACK, rng.uniform(0.42, 0.55))
    period = max(radius * rng.uniform(0.5, 0.65), 0.085 * size)
    shift = rng.uniform(0, period)
    if texture == "striped":
        field = _stripes(u + shift, period)
    elif texture == "checkered":
        field = _checks(u + shift, v, 1.4 * period)
    else:
        field = _dots(u + shift, v, 0.85 * period)
    return _blend(colour, second, field)


def _photograph(canvas: np.ndarray, rng: Random) -> Image.Image:
    """Adds light, noise and blur, and converts the canvas to an image."""
    gains = rng.uniform(0.86, 1.1) * np.array([rng.uniform(0.96, 1.04) for _ in range(3)], np.float32)
    canvas = canvas * gains + np.float32(rng.uniform(-8, 8))
    if rng.random() < 0.5:
        noise = np.random.Generator(np.random.PCG64(rng.getrandbits(64)))
        canvas += noise.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(2, 11))
    picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    if rng.random() < 0.2:
        picture = picture.filter(ImageFilter.GaussianBlur(len(canvas) / 96 * rng.uniform(0.3, 1.1)))
    return picture
