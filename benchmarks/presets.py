"""Presets of the training benchmarks, by kind of device."""

from __future__ import annotations

from dataclasses import dataclass

from growclip_ds.architecture import Architecture, ModelSizes


@dataclass(frozen=True)
class Preset:
    """Models, batch and precision of the training benchmarks on a kind of device.

    Attributes:
        compared: the architecture that is compared with the contenders.
        largest: the largest architecture, which is timed without contenders.
        names: names of the two.
        sizes: sizes of the input and the embedding space.
        batch_size: image-text pairs per rank.
        iterations: number of timed iterations.
        bf16: whether to train in bf16 instead of fp32.
    """

    compared: Architecture
    largest: Architecture
    names: tuple[str, str]
    sizes: ModelSizes
    batch_size: int
    iterations: int
    bf16: bool


PRESETS = {
    "gpu": Preset(
        compared=Architecture(0, 12, 12, 12, 8, 0),
        largest=Architecture(6, 18, 10, 10, 8, 8),
        names=("ViT-B/16 size", "S4"),
        sizes=ModelSizes(),
        batch_size=512,
        iterations=12,
        bf16=True,
    ),
    "cpu-small": Preset(  # a quarter of the width and a third of the depth, so the stem weighs more
        compared=Architecture(0, 4, 3, 4, 2, 0),
        largest=Architecture(2, 6, 3, 3, 2, 3),
        names=("small", "small S4"),
        sizes=ModelSizes(vocab_size=8192, embed_dim=128),
        batch_size=8,
        iterations=3,
        bf16=False,
    ),
}
