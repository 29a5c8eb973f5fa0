"""Shards of images of a given size, for measuring how fast they are loaded.

From real images, which may be smaller than that, three kinds are made: "mosaic", many side by side at their own scale;
"coarse mosaic", the same at 1.5 times their scale; and "enlarged", a single one. They have more detail than most
photographs, about as much, and less: the nine photographs that come with scikit-image and scikit-learn have 1.0 to 2.7
bits per pixel as JPEGs of this quality, with a median of 2.1. Without real images, scenes of the built-in data are
drawn at that size.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random

from PIL import Image

from growclip_ds.data.scenes.composition import compose
from growclip_ds.data.scenes.drawing import draw
from growclip_ds.data.scenes.grammar import describe

QUALITY = 90  # JPEG quality
SOURCES = 600  # number of real images used
TILE = 144  # height of a mosaic's rows in pixels, at the images' own scale

Pair = tuple[Image.Image, str]
Maker = Callable[[int, int, int], Pair]  # number, width, height


def makers(folder: Path | None) -> dict[str, Maker]:
    """Functions that create images and captions, by kind.

    Args:
        folder: folder of shards with real images; scenes of the built-in data are drawn if None.
    """
    if folder is None:
        return {"scenes": _scene}
    pairs = [
        (Image.open(io.BytesIO(picture)).convert("RGB"), caption)
        for picture, caption in islice(read_pairs(folder), SOURCES)
    ]
    return {
        "mosaic": lambda number, width, height: _mosaic(pairs, number, width, height, 1.0),
        "coarse mosaic": lambda number, width, height: _mosaic(pairs, number, width, height, 1.5),
        "enlarged": lambda number, width, height: _enlarged(pairs, number, width, height),
    }


def write_shard(path: Path, make: Maker, samples: int, width: int, height: int) -> float:
    """Writes a tar of images and captions, as img2dataset does; returns the images' bits per pixel."""
    import webdataset  # only here: reading shards does not need it

    size = 0
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for number in range(samples):
            picture, caption = make(number, width, height)
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=QUALITY)
            size += len(buffer.getvalue())
            writer.write({"__key__": f"{number:09d}", "jpg": buffer.getvalue(), "txt": caption.encode()})
    return 8 * size / (samples * width * height)


def read_pairs(folder: Path) -> Iterator[tuple[bytes, str]]:
    """Yields the JPEGs and captions of all shards in a folder, without writing an index next to them."""
    shards = sorted(folder.rglob("*.tar"))
    if not shards:
        raise SystemExit(f"{folder}: contains no shards (*.tar)")
    for shard in shards:
        parts: dict[str, dict[str, bytes]] = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.rpartition(".")
                if extension in ("jpg", "txt"):
                    parts.setdefault(key, {})[extension] = tar.extractfile(member).read()
        for sample in parts.values():
            if len(sample) == 2:
                yield sample["jpg"], sample["txt"].decode()


def _mosaic(pairs: list[Pair], number: int, width: int, height: int, scale: float) -> Pair:
    rng = Random(f"mosaic/{number}")
    canvas = Image.new("RGB", (width, height))
    for y in range(0, height, int(scale * TILE)):
        x = 0
        while x < width:
            picture, caption = rng.choice(pairs)
            picture = picture.resize((int(scale * picture.width), int(scale * picture.height)))
            canvas.paste(picture, (x, y))
            x += picture.width
    return canvas, caption


def _enlarged(pairs: list[Pair], number: int, width: int, height: int) -> Pair:
    picture, caption = Random(f"enlarged/{number}").choice(pairs)
    scale = max(width / picture.width, height / picture.height)
    box = (0, 0, width / scale, height / scale)
    return picture.resize((width, height), Image.Resampling.BICUBIC, box), caption


def _scene(number: int, width: int, height: int) -> Pair:
    rng = Random(f"scene/{number}")
    scene = compose(rng)
    return draw(scene, max(width, height), rng).crop((0, 0, width, height)), describe(scene, rng)
