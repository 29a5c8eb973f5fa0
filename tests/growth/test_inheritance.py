"""Eq. 5 element by element, for every kind of tensor, against index arithmetic written out here."""

from __future__ import annotations

import pytest
import torch

from growclip_ds import Architecture, GrowCLIP, inherit
from growclip_ds.growth.inheritance import Momentum, inherited_tensors
from growclip_ds.model.initial import initial_tensor

SIZES = {"vocab_size": 40, "context_length": 8, "image_size": 32, "embed_dim": 16}
OLD, NEW = Architecture(1, 3, 1, 2, 2, 0), Architecture(3, 5, 2, 5, 3, 2)
BETA, GAMMA, SEED = 0.4, 0.01, 7


@pytest.fixture(scope="module")
def models() -> tuple[dict, dict, dict]:
    """Weights of an old model without two equal elements, of the grown one, and the draws it was made with."""
    torch.manual_seed(0)
    old = GrowCLIP(OLD, **SIZES)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.copy_(torch.rand(parameter.shape) + 1)
    new = inherit(old, NEW, BETA, GAMMA, SEED)
    shapes = NEW.parameter_shapes(new.sizes)
    drawn = {name: initial_tensor(name, shape, NEW, SEED) for name, shape in shapes.items()}
    return (
        {name: p.detach() for name, p in old.named_parameters()},
        {name: p.detach() for name, p in new.named_parameters()},
        drawn,
    )


# (name in the new model, name in the old model it inherits from)
WEIGHTS = [
    ("image.stem.first.conv.weight", "image.stem.first.conv.weight"),
    ("image.stem.layers.0.conv.weight", "image.stem.layers.0.conv.weight"),
    ("image.stem.layers.1.conv.weight", "image.stem.layers.0.conv.weight"),  # two added to one: repeated
    ("image.stem.layers.2.conv.weight", "image.stem.layers.0.conv.weight"),
    ("image.stem.patches.weight", "image.stem.patches.weight"),
    ("image.embedding.class_token", "image.embedding.class_token"),
    ("image.embedding.positions", "image.embedding.positions"),
    ("image.blocks.0.attention.qkv.weight", "image.blocks.0.attention.qkv.weight"),
    ("image.blocks.2.mlp.expand.weight", "image.blocks.2.mlp.expand.weight"),
    ("image.blocks.3.attention.out.weight", "image.blocks.1.attention.out.weight"),  # two added copy the last two
    ("image.blocks.4.mlp.contract.weight", "image.blocks.2.mlp.contract.weight"),
    ("text.embedding.tokens", "text.embedding.tokens"),
    ("text.embedding.positions", "text.embedding.positions"),
    ("text.blocks.2.attention.qkv.weight", "text.blocks.0.attention.qkv.weight"),  # three added to two: repeated
    ("text.blocks.3.attention.qkv.weight", "text.blocks.1.attention.qkv.weight"),
    ("text.blocks.4.attention.qkv.weight", "text.blocks.0.attention.qkv.weight"),
    ("image_head.projection.weight", "image_head.projection.weight"),
    ("text_head.projection.weight", "text_head.projection.weight"),
]


@pytest.mark.parametrize(("name", "source"), WEIGHTS)
def test_weights_are_blended_and_new_elements_drawn_at_full_scale(models, name, source):
    old, new, drawn = models
    expected = drawn[name].clone()
    inside = tuple(map(slice, old[source].shape))
    expected[inside] = BETA * old[source] + GAMMA * drawn[name][inside]
    torch.testing.assert_close(new[name], expected, rtol=1e-6, atol=1e-7)


VECTORS = [
    ("logit_scale", "logit_scale"),
    ("image.stem.first.norm.weight", "image.stem.first.norm.weight"),
    ("image.stem.layers.2.norm.bias", "image.stem.layers.0.norm.bias"),
    ("image.blocks.0.attention_norm.weight", "image.blocks.0.attention_norm.weight"),
    ("image.blocks.4.attention.qkv.bias", "image.blocks.2.attention.qkv.bias"),
    ("text.blocks.1.mlp_norm.bias", "text.blocks.1.mlp_norm.bias"),
    ("text.blocks.3.mlp.expand.bias", "text.blocks.1.mlp.expand.bias"),
    ("image_head.norm.weight", "image_head.norm.weight"),
    ("text_head.norm.bias", "text_head.norm.bias"),
]


@pytest.mark.parametrize(("name", "source"), VECTORS)
def test_norms_biases_and_temperature_are_kept_and_new_elements_start_fresh(models, name, source):
    old, new, _ = models
    size = len(old[source])
    assert torch.equal(new[name][:size], old[source])
    initial = 1.0 if name.endswith("norm.weight") else 0.0
    assert torch.equal(new[name][size:], torch.full_like(new[name][size:], initial))


def test_heads_of_a_wider_model_keep_their_place():
    """New heads are the last rows of qkv: q, k and v of an old head stay together."""
    torch.manual_seed(0)
    old = GrowCLIP(OLD, **SIZES)
    new = inherit(old, NEW, beta=1.0, gamma=0.0)
    before, after = (
        m.image.blocks[0].attention.qkv.weight.view(-1, 3, 64, m.architecture.image_width) for m in (old, new)
    )
    assert torch.equal(after[:1, :, :, :64], before)


def test_a_first_shared_encoder_is_drawn_anew(models):
    _, new, drawn = models
    names = [name for name in new if name.startswith("shared.")]
    assert len(names) == 2 * 16
    for name in names:
        assert torch.equal(new[name], drawn[name])


def test_every_tensor_kind_is_covered_above(models):
    def kind(name: str) -> str:
        return ".".join("N" if part.isdigit() else part for part in name.split("."))

    _, new, _ = models
    covered = {kind(name).split(".", 1)[-1].replace("blocks.N.", "") for name, _ in WEIGHTS + VECTORS}
    weights = {n for n, p in new.items() if p.dim() > 1 and not n.startswith("shared.")}
    assert {kind(n).split(".", 1)[-1].replace("blocks.N.", "") for n in weights} <= covered


def test_an_equal_architecture_is_blended_whole():
    torch.manual_seed(0)
    old = GrowCLIP(OLD, **SIZES)
    same = inherit(old, OLD, beta=1.0, gamma=0.0)
    weights = dict(old.named_parameters())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in same.named_parameters())
    with pytest.raises(ValueError, match="a model grows"):
        inherit(old, Architecture(0, 3, 1, 2, 2, 0))


def test_the_selected_architecture_inherits_from_its_slice_of_the_supernet():
    """Eq. 8: read from the larger supernet, tensor by tensor, equals extracting first."""
    torch.manual_seed(0)
    supernet = GrowCLIP(NEW, **SIZES)
    chosen = Architecture(2, 4, 1, 5, 2, 2)
    expected = inherit(supernet.extract(chosen), chosen, BETA, GAMMA, SEED)
    weights = {name: p.detach() for name, p in supernet.named_parameters()}
    tensors = inherited_tensors(chosen, chosen, supernet.sizes, weights.__getitem__, Momentum(BETA, GAMMA), SEED)
    for (name, tensor), (other, parameter) in zip(tensors, expected.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(tensor, parameter)


def test_settings_of_what_the_paper_leaves_open():
    torch.manual_seed(0)
    old = GrowCLIP(OLD, **SIZES)
    weights = {name: p.detach() + 0.5 for name, p in old.named_parameters()}
    momentum = Momentum(BETA, GAMMA, fresh=GAMMA, blend_vectors=True)
    new = dict(inherited_tensors(OLD, NEW, old.sizes, weights.__getitem__, momentum, SEED))
    name = "image.embedding.positions"
    drawn = initial_tensor(name, new[name].shape, NEW, SEED)
    torch.testing.assert_close(new[name][:, 64:], GAMMA * drawn[:, 64:])
    torch.testing.assert_close(new[name][:, :64], BETA * weights[name] + GAMMA * drawn[:, :64])
    norm = "image_head.norm.weight"
    torch.testing.assert_close(new[norm][:64], BETA * weights[norm] + GAMMA)
    assert torch.equal(new[norm][64:], torch.ones(128))
