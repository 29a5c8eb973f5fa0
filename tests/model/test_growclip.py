"""Invariant 1 and what captions may depend on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from growclip_ds import Architecture, GrowCLIP, GrowthSpace
from growclip_ds.model.packed import PackedTokens, pack, pack_padded

SIZES = {"vocab_size": 61, "context_length": 12, "image_size": 32, "embed_dim": 24}
END = 60


def captions(lengths: list[int], seed: int = 0) -> PackedTokens:
    generator = torch.Generator().manual_seed(seed)
    return pack([[*torch.randint(0, END, (n - 1,), generator=generator).tolist(), END] for n in lengths])


def relative_error(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).detach().norm() / reference.detach().norm().clamp_min(1e-30))


@pytest.mark.parametrize("base", [Architecture(1, 1, 1, 1, 2, 0), Architecture(0, 2, 2, 1, 1, 1)], ids=str)
def test_a_subnet_inside_the_supernet_equals_the_extracted_model(base):
    """Invariant 1, over all 64 candidates: outputs and gradients."""
    torch.manual_seed(0)
    space = GrowthSpace(base, conv_step=1, block_step=1, head_step=1)
    supernet = GrowCLIP(space.supernet, **SIZES)
    with torch.no_grad():  # norms and biases that could be told apart
        for parameter in supernet.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    images, text = torch.randn(5, 3, 32, 32), captions([3, 12, 2, 7, 5])
    weights = [torch.randn(5, 24), torch.randn(5, 24), torch.randn(1)]
    for candidate in space:
        alone = supernet.extract(candidate)
        outputs = supernet(images, text, candidate), alone(images, text)
        for ours, theirs in zip(*outputs, strict=True):
            assert relative_error(ours, theirs) < 1e-6
        supernet.zero_grad()
        for output in outputs:
            sum((o * w).sum() for o, w in zip(output, weights, strict=True)).backward()
        gradients = dict(alone.named_parameters())
        # Keys' biases have no gradient but rounding errors: compare against the scale of the whole tensor.
        for name, parameter in supernet.named_parameters():
            if name not in gradients:
                assert parameter.grad is None, name
                continue
            inside = gradients[name].grad
            region = tuple(map(slice, inside.shape))
            assert relative_error(parameter.grad[region], inside) < 1e-6, (name, candidate)
            outside = parameter.grad.clone()
            outside[region] = 0
            assert not outside.any(), name


def test_one_modality_alone_gives_the_features_of_both_together():
    torch.manual_seed(1)
    architecture = Architecture(1, 1, 1, 1, 2, 2)
    model = GrowCLIP(architecture, **SIZES)
    images, text = torch.randn(4, 3, 32, 32), captions([3, 9, 2, 12])
    image_features, text_features, logit_scale = model(images, text)
    torch.testing.assert_close(model.encode_image(images), image_features)
    torch.testing.assert_close(model.encode_text(text), text_features)
    torch.testing.assert_close(image_features.norm(dim=1), torch.ones(4))
    assert logit_scale.item() == pytest.approx(1 / 0.07)


@pytest.mark.parametrize("shared_blocks", [0, 1])
def test_a_caption_depends_on_itself_up_to_its_end_alone(shared_blocks):
    torch.manual_seed(2)
    model = GrowCLIP(Architecture(0, 1, 1, 2, 1, shared_blocks), **SIZES)
    rows = torch.randint(0, END, (4, 12))
    for row, end in enumerate([2, 5, 11, 7]):
        rows[row, end] = END
    features = model.encode_text(rows)
    behind = rows.clone()
    behind[0, 3:], behind[1, 6:], behind[3, 8:] = 7, END, torch.randint(0, 61, (4,))
    assert torch.equal(model.encode_text(behind), features)
    others = rows.clone()
    others[1:] = others[1:].flip(0)
    torch.testing.assert_close(model.encode_text(others)[0], features[0])
    torch.testing.assert_close(model.encode_text(rows[:1]), features[:1])
    changed = rows.clone()
    changed[:, 1] = (changed[:, 1] + 1) % END
    assert (model.encode_text(changed) - features).abs().amax(dim=1).min() > 1e-4


def test_padded_captions_without_an_end_are_refused():
    rows = torch.ones(3, 5, dtype=torch.int64)
    rows[0, 2] = rows[2, 4] = END
    with pytest.raises(ValueError, match="caption 1 of the batch"):
        pack_padded(rows, END)


def test_end_of_text_can_be_another_token():
    model = GrowCLIP(Architecture(0, 1, 1, 1, 1, 0), **SIZES, end_of_text=3)
    packed = pack([[5, 9, 3], [3]])
    rows = torch.tensor([[5, 9, 3, 60], [3, 3, 3, 3]])
    assert torch.equal(model.encode_text(rows), model.encode_text(packed))


def test_an_empty_batch_passes_with_gradients_of_zero():
    model = GrowCLIP(Architecture(1, 1, 1, 1, 2, 1), **SIZES)
    image_features, text_features, logit_scale = model(torch.zeros(0, 3, 32, 32), pack([]))
    assert image_features.shape == text_features.shape == (0, 24)
    (image_features.sum() + text_features.sum() + logit_scale.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(p.grad.any() for name, p in model.named_parameters() if name != "logit_scale")


def test_only_what_the_model_holds_can_be_extracted():
    model = GrowCLIP(Architecture(0, 1, 1, 1, 1, 0), **SIZES)
    with pytest.raises(ValueError, match=r"\(0, 2, 1, 1, 1, 0\) is not part of"):
        model.extract(Architecture(0, 2, 1, 1, 1, 0))


def test_only_what_the_model_holds_can_be_run():
    """Layers that are not there would be passed over, and the features would be a smaller model's."""
    model, images, ids = GrowCLIP(Architecture(0, 1, 1, 1, 1, 0), **SIZES), torch.zeros(1, 3, 32, 32), pack([[END]])
    for larger in (Architecture(0, 2, 1, 1, 1, 0), Architecture(0, 1, 1, 1, 1, 3), Architecture(0, 1, 1, 1, 2, 0)):
        for call in (
            lambda one: model(images, ids, one),
            lambda one: model.encode_image(images, one),
            lambda one: model.encode_text(ids, one),
        ):
            with pytest.raises(ValueError, match="is not part of"):
                call(larger)


def test_the_same_seed_draws_the_same_model():
    architecture = Architecture(1, 1, 1, 1, 2, 1)
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(GrowCLIP(architecture, **SIZES))
    first, second, third = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["text.embedding.tokens"], third["text.embedding.tokens"])
