"""Eq. 5 element by element, for every kind of tensor, against index arithmetic written out here."""

from __future__ import annotations

import pytest
import torch

from growclip_ds import Architecture, GrowCLIP, inherit
from growclip_ds.architecture import ModelSizes
from growclip_ds.growth.inheritance import PIM, inherited_tensors
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


# For each layer of the new model, the old model's layer that it inherits from.
SOURCE_LAYERS = {
    "image.stem.layers": (0, 0, 0),  # two added to one: repeated
    "image.blocks": (0, 1, 2, 1, 2),  # two added copy the last two
    "text.blocks": (0, 1, 0, 1, 0),  # three added to two: repeated
}


def source_of(name: str) -> str:
    for stack, layers in SOURCE_LAYERS.items():
        for new, old in enumerate(layers):
            if name.startswith(f"{stack}.{new}."):
                return name.replace(f"{stack}.{new}.", f"{stack}.{old}.")
    return name


INHERITED = [(n, source_of(n)) for n in NEW.parameter_shapes(ModelSizes(**SIZES)) if not n.startswith("shared.")]
VECTORS = [pair for pair in INHERITED if pair[0].endswith(("norm.weight", ".bias", "logit_scale"))]
WEIGHTS = [pair for pair in INHERITED if pair not in VECTORS]


@pytest.mark.parametrize(("name", "source"), WEIGHTS)
def test_weights_are_blended_and_new_elements_drawn_at_full_scale(models, name, source):
    old, new, drawn = models
    expected = drawn[name].clone()
    inside = tuple(map(slice, old[source].shape))
    expected[inside] = BETA * old[source] + GAMMA * drawn[name][inside]
    torch.testing.assert_close(new[name], expected, rtol=1e-6, atol=1e-7)


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


def test_an_equal_architecture_is_blended_whole(models):
    weights, _, _ = models
    old = GrowCLIP(OLD, **SIZES)
    old.load_tensors(weights)
    same = dict(inherit(old, OLD, BETA, GAMMA, SEED).named_parameters())
    for name, _ in WEIGHTS:
        if name in weights:
            drawn = initial_tensor(name, weights[name].shape, OLD, SEED)
            torch.testing.assert_close(same[name].detach(), BETA * weights[name] + GAMMA * drawn)
    for name in weights.keys() & dict(VECTORS).keys():
        assert torch.equal(same[name], weights[name])


def test_without_momentum_nothing_changes_and_nothing_shrinks(models):
    weights, _, _ = models
    old = GrowCLIP(OLD, **SIZES)
    old.load_tensors(weights)
    same = inherit(old, OLD, beta=1.0, gamma=0.0)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in same.named_parameters())
    with pytest.raises(ValueError, match="a model can only grow"):
        inherit(old, Architecture(0, 3, 1, 2, 2, 0))


def test_a_model_in_bf16_grows_in_bf16():
    """As a candidate that is cut out of it has its type; the blend is computed in fp32 all the same."""
    torch.manual_seed(0)
    old = GrowCLIP(OLD, **SIZES).bfloat16()
    new = inherit(old, NEW, BETA, GAMMA, SEED)
    assert {parameter.dtype for parameter in new.parameters()} == {torch.bfloat16}
    name = "text.embedding.tokens"
    drawn = initial_tensor(name, new.text.embedding.tokens.shape, NEW, SEED)[:, :128]
    expected = BETA * old.text.embedding.tokens.detach().float() + GAMMA * drawn
    assert torch.equal(new.text.embedding.tokens[:, :128], expected.bfloat16())


def test_the_selected_architecture_inherits_from_its_slice_of_the_supernet():
    """Eq. 8: read from the larger supernet, tensor by tensor, equals extracting first."""
    torch.manual_seed(0)
    supernet = GrowCLIP(NEW, **SIZES)
    chosen = Architecture(2, 4, 1, 5, 2, 2)
    expected = inherit(supernet.extract(chosen), chosen, BETA, GAMMA, SEED)
    weights = {name: p.detach() for name, p in supernet.named_parameters()}
    tensors = inherited_tensors(chosen, chosen, supernet.sizes, weights.__getitem__, PIM(BETA, GAMMA), SEED)
    for (name, tensor), (other, parameter) in zip(tensors, expected.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(tensor, parameter)


def test_settings_of_what_the_paper_leaves_open():
    torch.manual_seed(0)
    old = GrowCLIP(OLD, **SIZES)
    weights = {name: p.detach() + 0.5 for name, p in old.named_parameters()}
    pim = PIM(BETA, GAMMA, fresh=GAMMA, blend_vectors=True)
    new = dict(inherited_tensors(OLD, NEW, old.sizes, weights.__getitem__, pim, SEED))
    name = "image.embedding.positions"
    drawn = initial_tensor(name, new[name].shape, NEW, SEED)
    torch.testing.assert_close(new[name][:, 64:], GAMMA * drawn[:, 64:])
    torch.testing.assert_close(new[name][:, :64], BETA * weights[name] + GAMMA * drawn[:, :64])
    norm = "image_head.norm.weight"
    torch.testing.assert_close(new[norm][:64], BETA * weights[norm] + GAMMA)
    assert torch.equal(new[norm][64:], torch.ones(128))
