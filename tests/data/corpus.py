"""Small shards for tests, written by webdataset itself."""

from __future__ import annotations

import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

from growclip_ds.data.faults import Cause
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


def bomb() -> bytes:
    """A PNG of some bytes that says it has 400 million pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(10)))]
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# What is wrong with samples 0 to 6 of the first shard of the corpus with every fault.
BROKEN = {
    0: (Cause.BROKEN_PICTURE, {"jpg": picture(0)[:100]}),
    1: (Cause.BROKEN_PICTURE, {"jpg": b""}),
    2: (Cause.DECOMPRESSION_BOMB, {"jpg": bomb()}),
    3: (Cause.EMPTY_CAPTION, {"txt": b" \n"}),
    4: (Cause.CAPTION_NOT_UTF8, {"txt": b"caf\xe9"}),
    5: (Cause.NO_CAPTION, {"txt": None}),
    6: (Cause.NO_PICTURE, {"jpg": None}),
}


def write_faulty(folder: Path) -> Counter[Cause]:
    """A corpus with every fault that shards can have, 60 samples in three shards; returns the faults by cause.

    `00001.tar` is cut off in its eleventh sample of twenty, and img2dataset's statistics are beside it.
    """
    samples = [pair(n) | BROKEN[n][1] if n in BROKEN else pair(n) for n in range(20)]
    write_shard(folder / "00000.tar", [{k: v for k, v in sample.items() if v is not None} for sample in samples])
    with (folder / "00001.tar").open("wb") as file:
        whole = write_shard(folder / "whole.tar", map(pair, range(20, 40)))
        with tarfile.open(whole) as tar:
            file.write(whole.read_bytes()[: tar.getmembers()[20].offset_data + 50])
        whole.unlink()
    (folder / "00001_stats.json").write_text('{"count": 25, "successes": 20}')
    write_shard(folder / "00002.tar", map(pair, range(40, 60)))
    return Counter(cause for cause, _ in BROKEN.values()) + Counter({Cause.DAMAGED_SHARD: 10})


def small_tokenizer(context_length: int = 16) -> Tokenizer:
    return train_tokenizer((caption(number) for number in range(50)), vocab_size=300, context_length=context_length)
