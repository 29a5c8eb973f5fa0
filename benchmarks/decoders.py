"""Compares JPEG decoders as they would be used here, on one core: the reason for the choice in `data/jpeg.py`.

    python benchmarks/decoders.py --pictures FOLDER     # FOLDER has webdataset shards with real images (jpg, txt)

with the packages installed (`make install`), or with kernels/ on PYTHONPATH. Writes results/decoders_CPU.json. Takes a
minute. Measures Pillow and simplejpeg, and opencv-python-headless and imagecodecs if they are installed.

A decoder returns RGB; a scaled one returns it at the smallest scale that it supports and that leaves 1.5 times the
target size. The resize that follows is the same for all, or Pillow's where stated. Decoders are timed alternately, by
processor time. Differences are from Pillow's decode and resize, of 255. A decoder that returns an image for a file cut
in half, without an error, is unusable as it is.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own folder is there, not the repository

from benchmarks import common
from benchmarks.pictures import QUALITY, makers
from growclip_ds.data.centre import centre, centre_by_pillow
from growclip_ds.data.jpeg import MARGIN, decode_scaled, scale_for

SIZE = 224
SHAPES = ((512, 384), (1024, 768))
PACKAGES = {"pillow": "PIL", "simplejpeg": "simplejpeg", "opencv-python-headless": "cv2", "imagecodecs": "imagecodecs"}
COLUMNS = {
    "decoder": ("decoder", ""),
    "kind": ("pictures", ""),
    "size": ("size", ""),
    "ms": ("ms", ".2f"),
    "difference": ("difference", ".2f"),
    "cut": ("half a file", ""),
}

Decoder = Callable[[bytes, int, int], Tensor]  # JPEG, its width and height -> (SIZE, SIZE, 3) uint8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder of webdataset shards with real images (jpg, txt)")
    parser.add_argument("--samples", type=int, default=40, help="number of images of each size")
    parser.add_argument("--rounds", type=int, default=7, help="rounds in which each decoder is timed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind, make in makers(arguments.pictures).items():
        for width, height in SHAPES:
            files = [encode(make(number, width, height)[0]) for number in range(arguments.samples)]
            rows += [
                {"kind": kind, "size": f"{width}×{height}"} | row
                for row in measure(files, width, height, arguments.rounds)
            ]
    print(common.markdown_table(rows, COLUMNS))
    packages = [name for name in PACKAGES if is_installed(name)]
    notes = [
        f"{arguments.samples} JPEGs of quality {QUALITY} per row, to {SIZE} × {SIZE}, one thread; median of "
        f"{arguments.rounds} rounds; " + ", ".join(f"{name} {version(name)}" for name in packages),
    ]
    print(common.write_results("decoders", rows, torch.device("cpu"), {}, notes))


def decoders() -> dict[str, Decoder]:
    found: dict[str, Decoder] = {
        "Pillow, resize by Pillow": lambda data, width, height: centre_by_pillow(np.array(pillow(data)), SIZE),
        "Pillow": lambda data, width, height: centre(np.array(pillow(data)), (width, height), SIZE),
        "Pillow, scaled": scaled_by_pillow,
        "simplejpeg": lambda data, width, height: by_simplejpeg(data, width, height, 1.0),
        "simplejpeg, scaled": lambda data, width, height: by_simplejpeg(
            data, width, height, scale_for(min(width, height), SIZE)
        ),
    }
    if is_installed("opencv-python-headless"):
        cv2 = import_module("cv2")
        cv2.setNumThreads(1)

        def by_opencv(data: bytes, width: int, height: int) -> Tensor:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
            return centre(pixels, (width, height), SIZE)

        def scaled_by_opencv(data: bytes, width: int, height: int) -> Tensor:
            halves = scale_for(min(width, height), SIZE) <= 1 / 2
            flag = cv2.IMREAD_REDUCED_COLOR_2 if halves else cv2.IMREAD_COLOR
            pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), flag), cv2.COLOR_BGR2RGB)
            return centre(pixels, (width / (1 + halves), height / (1 + halves)), SIZE)

        found |= {"OpenCV": by_opencv, "OpenCV, scaled": scaled_by_opencv}
    if is_installed("imagecodecs"):
        decode = import_module("imagecodecs").jpeg8_decode
        found["imagecodecs"] = lambda data, width, height: centre(decode(data), (width, height), SIZE)
    return found


def measure(files: list[bytes], width: int, height: int, rounds: int) -> list[dict[str, Any]]:
    expected = [centre_by_pillow(np.array(pillow(data)), SIZE).numpy().astype(np.int16) for data in files]
    found = decoders()
    turns: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(rounds + 1):
        for name, decode in found.items():
            start = time.process_time()
            for data in files:
                decode(data, width, height)
            if turn:  # the first warms up
                turns[name].append(1000 * (time.process_time() - start) / len(files))
    return [
        {
            "decoder": name,
            "ms": statistics.median(turns[name]),
            "difference": float(
                np.mean(
                    [
                        np.abs(decode(data, width, height).numpy() - reference).mean()
                        for data, reference in zip(files, expected, strict=True)
                    ]
                )
            ),
            "cut": "refused" if refuses(decode, files[0][: len(files[0]) // 2], width, height) else "a picture",
        }
        for name, decode in found.items()
    ]


def pillow(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def scaled_by_pillow(data: bytes, width: int, height: int) -> Tensor:
    picture = Image.open(io.BytesIO(data))
    least = int(MARGIN * SIZE)
    picture.draft("RGB", (least, least))
    scale = picture.width / width
    return centre(np.array(picture.convert("RGB")), (scale * width, scale * height), SIZE)


def by_simplejpeg(data: bytes, width: int, height: int, scale: float) -> Tensor:
    pixels = decode_scaled(data, width, height, scale)
    if pixels is None:
        raise ValueError("not decoded")
    return centre(pixels, (scale * width, scale * height), SIZE)


def refuses(decode: Decoder, data: bytes, width: int, height: int) -> bool:
    try:
        decode(data, width, height)
    except Exception:  # each library raises its own type
        return True
    return False


def encode(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def is_installed(package: str) -> bool:
    """Whether the module of a package is installed."""
    return find_spec(PACKAGES[package]) is not None


if __name__ == "__main__":
    main()
