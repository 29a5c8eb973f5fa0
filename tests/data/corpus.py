"""Small shards for tests, written by webdataset itself."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

from growclip_ds.data.tokens import Tokenizer, train_tokenizer


def picture(number: int = 0, width: int = 20, height: int = 14, kind: str = "JPEG") -> bytes:
    """An encoded picture of noise, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def caption(number: int) -> str:
    return "a photo of " + " ".join(["thing"] * (number % 5)) + f" number {number}"


def write_shard(path: Path, samples: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def pair(number: int, prefix: str = "") -> dict[str, Any]:
    return {"__key__": f"{prefix}{number:06d}", "jpg": picture(number), "txt": caption(number).encode()}


def write_shards(folder: Path, samples: int, per_shard: int = 10, prefix: str = "") -> Path:
    """A folder of shards with pairs whose keys are `prefix` and a number from 0."""
    for shard, start in enumerate(range(0, samples, per_shard)):
        numbers = range(start, min(start + per_shard, samples))
        write_shard(folder / f"{shard:05d}.tar", (pair(number, prefix) for number in numbers))
    return folder


def small_tokenizer(context_length: int = 16) -> Tokenizer:
    return train_tokenizer((caption(number) for number in range(50)), vocab_size=300, context_length=context_length)
