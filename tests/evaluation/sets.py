"""Small evaluation sets in CLIP-benchmark's layout, and an encoder whose features are known without running it."""

from __future__ import annotations

import hashlib
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from growclip_ds.distributed import all_gather_object
from growclip_ds.model.packed import PackedTokens, pack

SIZE = 16
END_OF_TEXT = 1000


def picture(seed: int) -> np.ndarray:
    """(16, 16, 3) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, image_format: str = "PNG") -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, image_format)
    return stream.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))


def write_set(folder: Path, kind: str, samples: list[tuple[bytes, str]], shard_sizes: list[int]) -> Path:
    """Writes samples, each a PNG and its annotation, in shards of the given sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_type.txt").write_text(kind)
    extension = {"classification": "cls", "retrieval": "txt"}[kind]
    assert sum(shard_sizes) == len(samples)
    first = 0
    for shard, size in enumerate(shard_sizes):
        members = []
        for number, (image, annotation) in enumerate(samples[first : first + size], first):
            members += [(f"s{number:04d}.{extension}", annotation.encode()), (f"s{number:04d}.png", image)]
        write_tar(folder / "test" / f"{shard}.tar", members)
        first += size
    (folder / "test" / "nshards.txt").write_text(str(len(shard_sizes)))
    return folder


CLASS_NAMES = [f"thing {number}" for number in range(7)]
TEMPLATES = ["a photo of {c}.", "{c} and another {c}", "look: {c}!"]


def write_classification_set(folder: Path, labels: list[int], shard_sizes: list[int]) -> Path:
    """Picture i is `picture(i)`."""
    write_set(folder, "classification", [(encoded(picture(i)), str(c)) for i, c in enumerate(labels)], shard_sizes)
    (folder / "classnames.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    return folder


def tokenize(texts: list[str]) -> PackedTokens:
    """A token a character."""
    return pack([[*map(ord, text), END_OF_TEXT] for text in texts])


def feature(kind: str, variant: int, content: bytes) -> np.ndarray:
    """(8,) float32, L2-normalised: a direction that depends on nothing but the arguments."""
    seed = hashlib.blake2b(f"{kind}/{variant}/".encode() + content, digest_size=8).digest()
    direction = np.random.default_rng(int.from_bytes(seed, "little")).standard_normal(8)
    return (direction / np.linalg.norm(direction)).astype(np.float32)


def image_feature(variant: int, pixels: np.ndarray) -> np.ndarray:
    return feature("image", variant, np.ascontiguousarray(pixels).tobytes())


def text_feature(variant: int, text: str) -> np.ndarray:
    return feature("text", variant, text.encode())


class KnownEncoder:
    """Four candidates, of two image and two text variants, that share tensors as candidates of a supernet do.

    Every call checks that all ranks make the same call, as a sharded model would need.
    """

    image_variants = (0, 0, 1, 1)
    text_variants = (0, 1, 0, 1)

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def _features(self, kind: str, contents: list[bytes], variants: tuple[int, ...]) -> list[Tensor]:
        self.calls.append((kind, len(contents)))
        assert {(call, number) for call, number in all_gather_object((kind, len(self.calls)))} == {
            (kind, len(self.calls))
        }
        rows = {v: [feature(kind, v, content) for content in contents] for v in set(variants)}
        tensors = {v: torch.from_numpy(np.stack(r) if r else np.empty((0, 8), np.float32)) for v, r in rows.items()}
        return [tensors[variant] for variant in variants]

    def images(self, pixels: Tensor) -> list[Tensor]:
        contents = [p.permute(1, 2, 0).contiguous().numpy().tobytes() for p in pixels]
        return self._features("image", contents, self.image_variants)

    def texts(self, tokens: PackedTokens) -> list[Tensor]:
        captions = tokens.ids.split(tokens.cu_seqlens.diff().tolist())
        return self._features("text", ["".join(map(chr, c[:-1])).encode() for c in captions], self.text_variants)


class ConstantEncoder:
    """A collapsed candidate and one whose features are not numbers."""

    def images(self, pixels: Tensor) -> list[Tensor]:
        return self._features(len(pixels))

    def texts(self, tokens: PackedTokens) -> list[Tensor]:
        return self._features(tokens.num_captions)

    def _features(self, n: int) -> list[Tensor]:
        return [torch.full((n, 4), 0.5), torch.full((n, 4), torch.nan)]
