from __future__ import annotations

import math

import pytest
import torch

from growclip_ds import Architecture
from growclip_ds.architecture import ModelSizes
from growclip_ds.model.initial import initial_tensor, is_vector

ARCHITECTURE = Architecture(2, 4, 4, 3, 2, 2)
SIZES = ModelSizes(512, 32, 64, 128)


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("image.stem.layers.0.conv.weight", math.sqrt(2 / 576)),
        ("image.stem.patches.weight", 1 / 64),
        ("image.blocks.1.attention.qkv.weight", 1 / 16),
        ("image.blocks.1.attention.out.weight", 1 / math.sqrt(2 * 4 * 256)),
        ("text.blocks.2.mlp.expand.weight", 1 / 16),
        ("text.blocks.2.mlp.contract.weight", 1 / math.sqrt(2 * 3 * 128)),
        ("text.embedding.tokens", 0.02),
        ("image_head.projection.weight", 1 / 16),
    ],
)
def test_deviations_are_clips(name, deviation):
    shape = ARCHITECTURE.parameter_shapes(SIZES)[name]
    tensor = initial_tensor(name, shape, ARCHITECTURE, seed=0)
    assert float(tensor.std()) == pytest.approx(deviation, rel=0.04)
    assert abs(float(tensor.mean())) < 4 * deviation / math.sqrt(tensor.numel())


def test_every_parameter_has_an_initial_value_drawn_from_seed_and_name():
    shapes = ARCHITECTURE.parameter_shapes(SIZES)
    first = {name: initial_tensor(name, shape, ARCHITECTURE, seed=1) for name, shape in shapes.items()}
    for name, shape in reversed(shapes.items()):  # whatever was drawn before
        assert torch.equal(initial_tensor(name, shape, ARCHITECTURE, seed=1), first[name])
        if not is_vector(name):
            assert not torch.equal(initial_tensor(name, shape, ARCHITECTURE, seed=2), first[name])
    blocks = [first[f"image.blocks.{i}.mlp.expand.weight"] for i in (0, 1)]
    assert not torch.equal(*blocks)


def test_vectors_are_the_norms_the_biases_and_the_temperature():
    vectors = {name for name in ARCHITECTURE.parameter_shapes(SIZES) if is_vector(name)}
    assert "image.embedding.class_token" not in vectors
    for name, shape in ARCHITECTURE.parameter_shapes(SIZES).items():
        assert (name in vectors) == (len(shape) == 1 and not name.endswith("class_token")), name


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"image\.wings\.weight"):
        initial_tensor("image.wings.weight", (2, 2), ARCHITECTURE, seed=0)
