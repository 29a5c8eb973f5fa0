"""Figures and logits against `transformers`' CLIP on the same weights, the rest computed apart in NumPy, in fp64."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from growclip_ds.architecture import Architecture
from growclip_ds.baselines.clip import FixedCLIP
from growclip_ds.evaluation import ModelEncoder, evaluate, load_evaluation_set
from growclip_ds.evaluation.classification import class_embeddings
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.model.stem import Stem
from tests.evaluation import sets

LABELS = [3, 1, 4, 1, 5, 0, 2, 6, 5, 3, 5, 1, 0, 2, 2, 4, 4, 6, 0, 0, 3, 5, 1, 2, 1, 3, 3]
CAPTIONS = [[f"caption {picture} of {number}" for number in range(1 + picture % 3)] for picture in range(24)]
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # as CLIP publishes them


def growclip() -> GrowCLIP:
    """Without a shared encoder; norms and biases are not what they start as."""
    torch.manual_seed(1)
    model = GrowCLIP(Architecture(0, 2, 2, 3, 1, 0), vocab_size=1001, context_length=40, image_size=16, embed_dim=32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


class StemForPatches(nn.Module):
    """GrowCLIP's stem in the place of CLIP's patch embedding."""

    def __init__(self, stem: Stem) -> None:
        super().__init__()
        self.stem, self.weight = stem, stem.patches.weight

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, S, S) -> (n, width, patches, 1)."""
        return self.stem(images, len(self.stem.layers), self.weight.shape[0]).transpose(1, 2)[..., None]


def as_clip(model: GrowCLIP) -> CLIPModel:
    """The model's weights in `transformers`' CLIP.

    Two parts have no counterpart there and are put in: the stem, whose convolutions are normalised and not linear as a
    patch embedding is, and CLIP's norm before the first image block, which GrowCLIP does not have.
    """
    architecture, sizes = model.architecture, model.sizes
    common = {"hidden_act": "gelu", "projection_dim": sizes.embed_dim}

    def tower(width: int, blocks: int, **more: int) -> dict:
        heads = {"num_hidden_layers": blocks, "num_attention_heads": width // 64}
        return common | heads | {"hidden_size": width, "intermediate_size": 4 * width} | more

    text = {"vocab_size": sizes.vocab_size, "max_position_embeddings": sizes.context_length}
    config = CLIPConfig(
        text_config=tower(
            architecture.text_width,
            architecture.text_blocks,
            eos_token_id=model.end_of_text,
            bos_token_id=None,
            pad_token_id=None,
            **text,
        ),
        vision_config=tower(architecture.image_width, architecture.image_blocks, image_size=16, patch_size=16),
        projection_dim=sizes.embed_dim,
    )
    clip = CLIPModel(config).eval()
    clip.vision_model.embeddings.patch_embedding = StemForPatches(model.image.stem)
    clip.vision_model.pre_layrnorm = nn.Identity()
    vision, captions = clip.vision_model, clip.text_model
    pairs = [
        (vision.embeddings.class_embedding, model.image.embedding.class_token),
        (vision.embeddings.position_embedding.weight, model.image.embedding.positions),
        (captions.embeddings.token_embedding.weight, model.text.embedding.tokens),
        (captions.embeddings.position_embedding.weight, model.text.embedding.positions),
        (clip.visual_projection.weight, model.image_head.projection.weight),
        (clip.text_projection.weight, model.text_head.projection.weight),
        (clip.logit_scale, model.logit_scale[0]),
    ]
    layers = [(vision.post_layernorm, model.image_head.norm), (captions.final_layer_norm, model.text_head.norm)]
    for theirs, ours in ((vision, model.image), (captions, model.text)):
        for layer, block in zip(theirs.encoder.layers, ours.blocks, strict=True):
            attention = layer.self_attn
            layers += [(layer.layer_norm1, block.attention_norm), (layer.layer_norm2, block.mlp_norm)]
            layers += [(layer.mlp.fc1, block.mlp.expand), (layer.mlp.fc2, block.mlp.contract)]
            layers += [(attention.out_proj, block.attention.out)]
            heads = len(block.attention.qkv.bias) // (3 * 64)
            weight = block.attention.qkv.weight.view(heads, 3, 64, -1)
            bias = block.attention.qkv.bias.view(heads, 3, 64)
            for place, projection in enumerate((attention.q_proj, attention.k_proj, attention.v_proj)):
                pairs += [
                    (projection.weight, weight[:, place].flatten(0, 1)),
                    (projection.bias, bias[:, place].flatten()),
                ]
    pairs += [(getattr(theirs, name), getattr(ours, name)) for theirs, ours in layers for name in ("weight", "bias")]
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(ours)
    return clip


def small_clip() -> CLIPModel:
    """A `CLIPModel` as `transformers` makes it."""
    torch.manual_seed(2)
    tower = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    text = {
        "vocab_size": 1001,
        "max_position_embeddings": 40,
        "eos_token_id": sets.END_OF_TEXT,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    config = CLIPConfig(
        text_config=tower | text, vision_config=tower | {"image_size": 16, "patch_size": 8}, projection_dim=32
    )
    clip = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return clip


@dataclass
class Case:
    """The same weights in a model that is evaluated and in one that only `transformers` runs."""

    model: nn.Module
    reference: CLIPModel


@pytest.fixture(params=["GrowCLIP", "CLIPModel"])
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "GrowCLIP":
        model = growclip()
        return Case(model, as_clip(model))
    reference = small_clip()
    model = FixedCLIP(reference.config)
    state = reference.state_dict()
    model.load_state_dict(state | {"logit_scale": state["logit_scale"].reshape(1)})
    return Case(model.eval(), reference)


@torch.no_grad()
def similarities(clip: CLIPModel, pictures: list[int], texts: list[str]) -> np.ndarray:
    """(pictures, texts): cosines, each caption in a batch of its own."""
    pixels = np.stack([sets.picture(seed) for seed in pictures]) / 255.0
    images = torch.from_numpy((pixels - MEAN) / STD).permute(0, 3, 1, 2).float()
    columns = []
    for text in texts:
        ids = torch.tensor([[*map(ord, text), sets.END_OF_TEXT]])
        columns.append(clip(input_ids=ids, pixel_values=images).logits_per_image / clip.logit_scale.exp())
    return torch.cat(columns, dim=1).double().numpy()


@torch.no_grad()
def text_features(clip: CLIPModel, texts: list[str]) -> np.ndarray:
    """(texts, e), fp64, normalised."""
    pixels = torch.zeros(1, 3, 16, 16)
    rows = [
        clip(input_ids=torch.tensor([[*map(ord, text), sets.END_OF_TEXT]]), pixel_values=pixels).text_embeds[0]
        for text in texts
    ]
    features = torch.stack(rows).double().numpy()
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@torch.no_grad()
def image_features(clip: CLIPModel, pictures: list[int]) -> np.ndarray:
    """(pictures, e), fp64."""
    pixels = np.stack([sets.picture(seed) for seed in pictures]) / 255.0
    images = torch.from_numpy((pixels - MEAN) / STD).permute(0, 3, 1, 2).float()
    ids = torch.full((1, 2), sets.END_OF_TEXT)
    return clip(input_ids=ids, pixel_values=images).image_embeds.double().numpy()


def test_classification(case: Case, tmp_path: Path) -> None:
    dataset = load_evaluation_set(sets.write_classification_set(tmp_path / "things", LABELS, [20, 7]))
    means = []
    for name in sets.CLASS_NAMES:
        mean = text_features(case.reference, [t.replace("{c}", name) for t in sets.TEMPLATES]).mean(axis=0)
        means.append(mean / np.linalg.norm(mean))
    images = image_features(case.reference, list(range(len(LABELS))))
    logits = images @ np.stack(means).T  # (27, 7)

    encoder = ModelEncoder(case.model)
    pixels = torch.stack([torch.from_numpy(sets.picture(seed)).permute(2, 0, 1) for seed in range(len(LABELS))])
    (classifier,) = class_embeddings(encoder, dataset, sets.tokenize, 4)
    ours = encoder.images(pixels)[0] @ classifier.T
    assert np.abs(ours.numpy() - logits).max() < 2e-6
    assert logits.std() > 0.01  # else anything would be equal

    (result,) = evaluate(encoder, dataset, sets.tokenize, sets.SIZE, 4)
    places = np.array([(row > row[label]).sum() for row, label in zip(logits, LABELS, strict=True)])
    per_class = [100 * (places[np.array(LABELS) == label] == 0).mean() for label in set(LABELS)]
    assert result.top1 == pytest.approx(100 * (places == 0).mean())
    assert result.top5 == pytest.approx(100 * (places < 5).mean())
    assert result.mean_per_class == pytest.approx(np.mean(per_class))
    assert 0 < result.top5 < 100


def test_retrieval(case: Case, tmp_path: Path) -> None:
    samples = [(sets.encoded(sets.picture(i)), "\n".join(texts)) for i, texts in enumerate(CAPTIONS)]
    dataset = load_evaluation_set(sets.write_set(tmp_path / "pairs", "retrieval", samples, [10, 14]))
    texts = [text for captions in CAPTIONS for text in captions]
    owners = np.array([picture for picture, captions in enumerate(CAPTIONS) for _ in captions])
    scores = similarities(case.reference, list(range(len(CAPTIONS))), texts)

    (result,) = evaluate(ModelEncoder(case.model), dataset, sets.tokenize, sets.SIZE, 5)
    assert (result.pictures, result.captions) == (len(CAPTIONS), len(texts))
    for k in (1, 5, 10):
        found = [np.isin(np.argsort(-row)[:k], np.flatnonzero(owners == i)).any() for i, row in enumerate(scores)]
        assert result.image_to_text[k] == pytest.approx(100 * np.mean(found))
        found = [owner in np.argsort(-column)[:k] for owner, column in zip(owners, scores.T, strict=True)]
        assert result.text_to_image[k] == pytest.approx(100 * np.mean(found))
    assert 0 < result.text_to_image[10] < 100
