"""A `GrowCLIPModel` has the features of the training model, and CLIP's outputs."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from growclip_ds import Architecture, GrowCLIP
from growclip_ds.hub.configuration_growclip import GrowCLIPConfig
from growclip_ds.hub.modeling_growclip import GrowCLIPModel
from growclip_ds.model.initial import initial_tensor, is_vector
from growclip_kernels import contrastive_loss
from tests.hub.models import ARCHITECTURES, captions_of_all_lengths, growclip, pictures


def hub_model(model: GrowCLIP) -> GrowCLIPModel:
    """The same weights in the hub's model, by the same names."""
    config = GrowCLIPConfig(**asdict(model.architecture), **asdict(model.sizes), end_of_text=model.end_of_text)
    other = GrowCLIPModel(config).eval()
    assert list(dict(other.named_parameters())) == list(dict(model.named_parameters()))
    other.load_state_dict(model.state_dict())
    return other


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
@torch.no_grad()
def test_features_are_those_of_the_training_model(architecture: Architecture) -> None:
    model = growclip(architecture)
    other = hub_model(model)
    images, rows = pictures(3), captions_of_all_lengths(model.end_of_text)
    image_features, text_features, scale = model(images, rows)
    assert_same(other.get_image_features(images).pooler_output, image_features)
    assert_same(other.get_text_features(rows).pooler_output, text_features)
    outputs = other(input_ids=rows, pixel_values=images)
    assert_same(outputs.image_embeds, image_features)
    assert_same(outputs.text_embeds, text_features)
    assert_same(outputs.logits_per_image, scale * image_features @ text_features.T)
    assert_same(outputs.logits_per_text, outputs.logits_per_image.T)
    assert outputs.loss is None


@pytest.mark.parametrize("size", [16, 48])
@torch.no_grad()
def test_pictures_of_any_size_that_the_model_is_made_for(size: int) -> None:
    model = growclip(ARCHITECTURES[1], size)
    other = hub_model(model)
    assert_same(other.get_image_features(pictures(2, size)).pooler_output, model.encode_image(pictures(2, size)))
    with pytest.raises(ValueError, match=f"images are 32 × 32, but the model takes {size} × {size}"):
        other.get_image_features(pictures(2, 32))


@torch.no_grad()
def test_padding_may_be_on_either_side() -> None:
    model = growclip(ARCHITECTURES[2])
    other, end = hub_model(model), model.end_of_text
    rows = captions_of_all_lengths(end)
    expected = model.encode_text(rows)
    lengths = 1 + torch.arange(len(rows))
    places = torch.arange(15)
    right = places < lengths[:, None]
    left = places >= 15 - lengths[:, None]
    tokens = torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])
    for mask in (right, left):
        padded = torch.full((len(rows), 15), end)
        padded[mask] = tokens
        assert_same(other.get_text_features(padded, attention_mask=mask.long()).pooler_output, expected)
    assert_same(other.get_text_features(rows[:, :1].fill_(end)).pooler_output, expected[:1].expand(len(rows), -1))


@torch.no_grad()
def test_what_is_too_long_is_cut_as_in_training() -> None:
    model = growclip(ARCHITECTURES[1])
    other = hub_model(model)
    rows = captions_of_all_lengths(model.end_of_text, 20)
    rows[0, -1] = 0
    context = model.sizes.context_length
    cut = rows[:, :context].clone()
    cut[context:, -1] = model.end_of_text
    assert_same(other.get_text_features(rows).pooler_output, model.encode_text(cut))


def test_a_caption_without_an_end_is_refused() -> None:
    model = hub_model(growclip(ARCHITECTURES[0]))
    rows = captions_of_all_lengths(model.config.end_of_text)
    rows[3] = 1
    with pytest.raises(ValueError, match="caption 3 of the batch has no end-of-text token"):
        model.get_text_features(rows)
    mask = torch.ones_like(rows)
    mask[2, 2:] = 0  # the end is padding
    with pytest.raises(ValueError, match="caption 2 of the batch"):
        model.get_text_features(rows, mask)


def test_the_loss_and_its_gradients_are_those_of_training() -> None:
    model = growclip(ARCHITECTURES[1])
    other = hub_model(model)
    rows = captions_of_all_lengths(model.end_of_text)
    images = pictures(len(rows))
    loss = contrastive_loss(*model(images, rows))
    loss.backward()
    outputs = other(rows, images, return_loss=True)
    outputs.loss.backward()
    assert_same(outputs.loss, loss)
    gradients = dict(model.named_parameters())
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-5, msg=name)


def test_outputs_are_clips() -> None:
    model = hub_model(growclip(ARCHITECTURES[0]))
    rows = captions_of_all_lengths(model.config.end_of_text)
    outputs = model(rows, pictures(2), return_loss=False)
    assert outputs.vision_model_output.last_hidden_state.shape == (2, 5, 64)
    assert outputs.text_model_output.last_hidden_state.shape == (len(rows), len(rows), 64)
    assert torch.equal(outputs.text_model_output.pooler_output, outputs.text_embeds)
    as_tuple = model(rows, pictures(2), return_dict=False)
    assert torch.equal(as_tuple[0], outputs.logits_per_image)
    assert torch.equal(model.get_image_features(pictures(2), return_dict=False)[1], outputs.image_embeds)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_costs_no_more_than_in_training(dtype: torch.dtype) -> None:
    model = growclip(ARCHITECTURES[1])
    other = hub_model(model)
    images, rows = pictures(3), captions_of_all_lengths(model.end_of_text)
    exact = model(images, rows)
    halved = model.to(dtype)(images.to(dtype), rows)
    outputs = other.to(dtype)(rows, images)  # of fp32 pictures, as the image processor makes them
    for ours, theirs, reference in zip((outputs.image_embeds, outputs.text_embeds), halved, exact, strict=False):
        assert ours.dtype == dtype
        assert (ours.float() - reference).norm() < 1.5 * (theirs.float() - reference).norm()
    similarities = outputs.image_embeds.float() @ outputs.text_embeds.float().T
    torch.testing.assert_close(outputs.logits_per_image, similarities * other.logit_scale.float().exp())


def test_a_new_model_starts_as_training_does() -> None:
    architecture = Architecture(1, 3, 2, 1, 3, 2)
    config = GrowCLIPConfig(**asdict(architecture), vocab_size=300, image_size=32, embed_dim=64)
    assert config.end_of_text == 299
    for name, parameter in GrowCLIPModel(config).requires_grad_(False).named_parameters():
        expected = initial_tensor(name, tuple(parameter.shape), architecture, seed=0)
        if is_vector(name):
            assert torch.equal(parameter, expected), name
        else:
            assert float(parameter.std()) == pytest.approx(float(expected.std()), rel=0.25), name
            assert abs(float(parameter.mean())) < 0.3 * float(expected.std()), name
