"""CLIP checkpoints as `transformers` writes them, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.baselines.clip import clip_config
from growclip_ds.baselines.clip_checkpoint import load_clip, outline_clip, read_clip_config, require_pixels
from growclip_ds.errors import InputError
from growclip_ds.model.packed import pack

CONFIG = clip_config(Architecture(0, 2, 1, 1, 2, 0), ModelSizes(60, 12, 32, 24), end_of_text=59)


@pytest.mark.parametrize("files", ["one", "several", "others"])
def test_of_weights_in_two_precisions_the_model_s_own_are_loaded(tmp_path: Path, files: str) -> None:
    """`model.safetensors`, or those of the index; files of other names only where there is neither."""
    reference = CLIPModel(CONFIG)
    reference.save_pretrained(tmp_path, max_shard_size="50KB" if files == "several" else "1GB")
    assert (tmp_path / "model.safetensors").exists() == (files != "several")
    if files == "others":
        (tmp_path / "model.safetensors").rename(tmp_path / "pytorch.safetensors")
    else:
        halved = {name: tensor.half() for name, tensor in reference.state_dict().items()}
        save_file(halved, tmp_path / "model-00000.fp16.safetensors")
    for name, parameter in load_clip(tmp_path).named_parameters():
        assert torch.equal(parameter, reference.state_dict()[name].reshape(parameter.shape)), name


def test_an_index_that_is_damaged_is_an_error(tmp_path: Path) -> None:
    CLIPModel(CONFIG).save_pretrained(tmp_path, max_shard_size="50KB")
    index = tmp_path / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    for text, message in (
        ("{", r"index\.json: cannot be read .*copy the checkpoint again"),
        ('{"weight_map": [1]}', r"index\.json: cannot be read .*copy the checkpoint again"),
        (
            json.dumps({"weight_map": {**good["weight_map"], "x": "gone.safetensors"}}),
            r"gone\.safetensors: cannot be read",
        ),
    ):
        index.write_text(text)
        with pytest.raises(InputError, match=message):
            load_clip(tmp_path)


def test_features_of_another_family_s_sizes_are_those_of_transformers(tmp_path: Path) -> None:
    """Patches of 14 pixels and heads of 40 channels, as ViT-H/14 at 378 pixels has them: no picture of ours."""
    text = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 60}
    text |= {"max_position_embeddings": 12, "eos_token_id": 59, "intermediate_size": 100, "hidden_act": "gelu"}
    vision = {"hidden_size": 80, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 42, "patch_size": 14}
    config = CLIPConfig(text_config=text, vision_config=vision | {"intermediate_size": 96}, projection_dim=24)
    reference = CLIPModel(config).eval()
    reference.save_pretrained(tmp_path)
    model = load_clip(tmp_path)
    assert outline_clip(tmp_path).sizes == model.sizes == ModelSizes(60, 12, 42, 24)
    pixels = torch.randn(3, 3, 42, 42, generator=torch.Generator().manual_seed(0))
    captions = [[1, 2, 59], [7, 59], [4, 5, 6, 59]]
    padded = torch.tensor([[*ids, *[59] * (4 - len(ids))] for ids in captions])
    with torch.no_grad():
        expected = reference(input_ids=padded, pixel_values=pixels)
        torch.testing.assert_close(model.encode_image(pixels), expected.image_embeds)
        torch.testing.assert_close(model.encode_text(pack(captions)), expected.text_embeds)


def test_an_outline_reads_names_and_shapes_alone(tmp_path: Path) -> None:
    CLIPModel(CONFIG).save_pretrained(tmp_path)
    outline = outline_clip(tmp_path)
    assert all(parameter.is_meta for parameter in outline.parameters())
    CONFIG.save_pretrained(tmp_path)
    other = json.loads((tmp_path / "config.json").read_text())
    other["projection_dim"] = 7
    (tmp_path / "config.json").write_text(json.dumps(other))
    for read in (outline_clip, load_clip):
        with pytest.raises(InputError, match=r"projection\.weight has shape .*config\.json beside it needs \(7, "):
            read(tmp_path)


def test_pictures_that_are_normalised_otherwise_are_refused(tmp_path: Path) -> None:
    """As those of LAION's first ViT-L/14 are."""
    CLIPModel(CONFIG).save_pretrained(tmp_path)
    require_pixels(tmp_path)  # it does not say
    CLIPImageProcessor().save_pretrained(tmp_path)
    require_pixels(tmp_path)
    assert read_clip_config(tmp_path).projection_dim == 24
    file = tmp_path / "preprocessor_config.json"
    stated = json.loads(file.read_text())
    for wrong, message in (
        ({"image_mean": [0.5, 0.5, 0.5]}, r"image_mean is \(0\.5, 0\.5, 0\.5\), but images are normalised with CLIP's"),
        ({"image_std": [1.0]}, r"image_std is \(1\.0,\), but images"),
        ({"image_std": "odd"}, r"preprocessor_config\.json: cannot be read"),
    ):
        file.write_text(json.dumps(stated | wrong))
        for check in (require_pixels, read_clip_config):
            with pytest.raises(InputError, match=message):
                check(tmp_path)
