"""An exported folder loads in `transformers`: registered by this package, and by its own code without it."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    CLIPModel,
    pipeline,
)

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.baselines.clip import FixedCLIP, clip_config
from growclip_ds.data.pictures import decode_picture, normalise
from growclip_ds.data.tokens import END_OF_TEXT, START_OF_TEXT, Tokenizer, load_tokenizer
from growclip_ds.hub.configuration_growclip import GrowCLIPConfig
from growclip_ds.hub.export import export
from growclip_ds.hub.image_processing_growclip import GrowCLIPImageProcessor
from growclip_ds.hub.modeling_growclip import GrowCLIPModel
from tests.evaluation.models import tokenizer
from tests.hub.models import ARCHITECTURES, CONTEXT, captions_of_all_lengths, growclip, pictures, randomised

CAPTIONS = [
    "red thing",
    "",
    "  Two   blanks, ÄÖ and 猫 ",
    "written: <|endoftext|> and <|startoftext|>",
    "a caption that has many more tokens than the model has places " * 3,
]


@pytest.fixture(autouse=True)
def _nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`transformers` asks on the terminal whether to run a folder's code, unless it knows; some errors it swallows."""
    asked = []

    def answer(prompt: str = "") -> str:
        asked.append(prompt)
        return "n"

    monkeypatch.setattr("builtins.input", answer)
    yield
    assert not asked


def words() -> Tokenizer:
    """The small tokenizer at the length of the models."""
    return Tokenizer(tokenizer()._backend, "<|startoftext|>", "<|endoftext|>", CONTEXT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    export(growclip(ARCHITECTURES[1]), words(), folder)
    return folder


@torch.no_grad()
def test_it_loads_registered(folder: Path) -> None:
    assert type(AutoConfig.from_pretrained(folder)) is GrowCLIPConfig
    model, other = AutoModel.from_pretrained(folder), growclip(ARCHITECTURES[1])
    assert type(model) is GrowCLIPModel
    assert not model.training
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert type(AutoModelForZeroShotImageClassification.from_pretrained(folder)) is GrowCLIPModel
    assert type(AutoImageProcessor.from_pretrained(folder)) is GrowCLIPImageProcessor
    assert AutoModel.from_pretrained(folder, dtype="bfloat16").dtype == torch.bfloat16


@torch.no_grad()
def test_the_pipeline_classifies(folder: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8))
    labels = ["red thing", "green thing", "a caption that has many more tokens than the model has places"]
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    found = {one["label"]: one["score"] for one in classify(picture, labels, hypothesis_template="a photo of {}")}
    model = growclip(ARCHITECTURES[1])
    images = classify.image_processor(picture, return_tensors="pt")["pixel_values"]
    image_features, text_features, scale = model(images, words()([f"a photo of {label}" for label in labels]))
    expected = (scale * image_features @ text_features.T).softmax(dim=-1)[0].tolist()
    assert [found[label] for label in labels] == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_what_is_saved_again_loads_again(folder: Path, tmp_path: Path) -> None:
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again")
    rows = captions_of_all_lengths(model.config.end_of_text)
    assert torch.equal(again.get_text_features(rows).pooler_output, model.get_text_features(rows).pooler_output)
    assert AutoProcessor.from_pretrained(tmp_path / "again").tokenizer(CAPTIONS[3]) == processor.tokenizer(CAPTIONS[3])
    assert (tmp_path / "again" / "modeling_growclip.py").exists()


def clips_own(folder: Path) -> Tokenizer:
    """CLIP's own two files, small: 256 bytes, the same ending a word, a merge, the special tokens last."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "re", START_OF_TEXT, END_OF_TEXT]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\n")
    return load_tokenizer(folder, CONTEXT)


def without_special_tokens(folder: Path) -> Tokenizer:
    """One that adds neither start nor end by itself, as GPT-2's does not."""
    trained = words()
    trained.save(folder)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    return load_tokenizer(folder, CONTEXT)


@pytest.mark.parametrize(
    "make", [lambda _: words(), clips_own, without_special_tokens], ids=["trained", "clip", "bare"]
)
def test_captions_become_the_tokens_of_training(make: Callable[[Path], Tokenizer], tmp_path: Path) -> None:
    trained = make(tmp_path / "made")
    export(growclip(ARCHITECTURES[0]), trained, tmp_path / "out")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    packed = trained(CAPTIONS)
    expected = [part.tolist() for part in packed.ids.split(packed.cu_seqlens.diff().tolist())]
    assert loaded(CAPTIONS, truncation=True)["input_ids"] == expected
    assert loaded.model_max_length == CONTEXT
    padded = loaded(CAPTIONS[:3], padding=True, return_tensors="pt")
    assert sorted(padded) == ["attention_mask", "input_ids"]
    assert padded["input_ids"][1, 2:].eq(trained.end_of_text).all()
    assert load_tokenizer(tmp_path / "out", CONTEXT)(CAPTIONS).ids.equal(packed.ids)  # and back


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def test_pictures_become_the_pixels_of_evaluation(folder: Path) -> None:
    random = np.random.default_rng(0)
    noise = {
        size: random.integers(0, 256, (*size, 4), dtype=np.uint8) for size in [(47, 70), (33, 32), (20, 19), (30, 400)]
    }
    files = [encoded(Image.fromarray(pixels[..., :3]), "PNG") for pixels in noise.values()]
    files.append(encoded(Image.fromarray(noise[47, 70]), "PNG"))  # transparent
    files.append(encoded(Image.fromarray(noise[47, 70][..., 0]), "PNG"))
    files.append(encoded(Image.fromarray(noise[47, 70][..., 0]).convert("P"), "PNG", transparency=3))
    files.append(encoded(Image.fromarray(noise[47, 70][..., 0].astype(np.uint16) * 257), "PNG"))
    files += [encoded(Image.fromarray(noise[20, 19][..., :3]), "JPEG", exif=exif) for exif in orientations()]
    expected = normalise(torch.stack([decode_picture(file, 32, exact=True) for file in files]))
    processor = AutoImageProcessor.from_pretrained(folder)
    ours = processor([Image.open(BytesIO(file)) for file in files], return_tensors="pt")["pixel_values"]
    assert torch.equal(ours, expected)
    arrays = [noise[47, 70][..., :3], torch.from_numpy(noise[33, 32][..., :3]).permute(2, 0, 1)]
    assert torch.equal(processor(arrays, return_tensors="pt")["pixel_values"], expected[:2])
    with pytest.raises(ValueError, match="uint8"):
        processor(noise[47, 70][..., :3] / 255)


def test_the_orientation_is_that_of_evaluation(recwarn: pytest.WarningsRecorder) -> None:
    """EXIF's alone: Pillow also looks in XMP and in text of a PNG, and warns of what is damaged."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (47, 70, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    raw = PngInfo()
    raw.add_text("Raw profile type exif", f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n")
    in_text = PngInfo()
    in_text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    files = [encoded(picture, kind, xmp=xmp) for kind in ("JPEG", "WEBP")]
    files += [encoded(picture, "PNG", pnginfo=text) for text in (raw, in_text)]
    files += [encoded(picture, kind, exif=exif) for kind in ("JPEG", "WEBP", "PNG")]
    tag = struct.pack(">HHI", 0x0112, 4, 1)
    for block in (
        b"MM\0*" + struct.pack(">IH", 8, 1) + tag + struct.pack(">I", 8),  # as LONG
        b"MM\0*" + struct.pack(">IH", 8, 1) + tag,
        b"MM\0*" + struct.pack(">I", 8) + b"\xff",
        b"no TIFF",
    ):
        files += [encoded(picture, kind, exif=b"Exif\0\0" + block) for kind in ("JPEG", "WEBP")]
    expected = normalise(torch.stack([decode_picture(file, 32, exact=True) for file in files]))
    assert len(expected.unique(dim=0)) > 2
    processor = GrowCLIPImageProcessor({"shortest_edge": 32})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, when it opens them
        opened = [Image.open(BytesIO(file)) for file in files]
    recwarn.clear()
    assert torch.equal(processor(opened, return_tensors="pt")["pixel_values"], expected)
    assert not recwarn.list


def orientations() -> list[Image.Exif]:
    exifs = []
    for orientation in range(1, 10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        exifs.append(exif)
    return exifs


@torch.no_grad()
def test_it_loads_without_this_package(tmp_path: Path) -> None:
    rows, images = captions_of_all_lengths(words().end_of_text), pictures(2)
    save_file({"input_ids": rows, "pixel_values": images}, tmp_path / "inputs.safetensors")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(
        tmp_path / "picture.png"
    )
    folders = []
    for number, architecture in enumerate(ARCHITECTURES[1:3]):
        model = growclip(architecture)
        folders.append(tmp_path / f"model-{number}.x")
        export(model, words(), folders[-1], max_shard_bytes=100_000)
        image_features, text_features, _ = model(images, rows)
        save_file({"image_embeds": image_features, "text_embeds": text_features}, f"{folders[-1]}.expected")
    hidden = ("PYTHONPATH", "HF_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    script = str(Path(__file__).with_name("remote_code.py"))
    line = [sys.executable, "-I", script, str(tmp_path), *map(str, folders)]
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["models"] == ["GrowCLIPModel"] * 2


@torch.no_grad()
def test_a_fixed_clip_is_a_plain_one(tmp_path: Path) -> None:
    tokens = words()
    sizes = ModelSizes(tokens.vocab_size, CONTEXT, image_size=32, embed_dim=24)
    model = FixedCLIP(clip_config(Architecture(0, 2, 1, 1, 2, 0), sizes, tokens.end_of_text))
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
    randomised(model)
    export(model, tokens, tmp_path / "clip", max_shard_bytes=100_000)
    assert not list((tmp_path / "clip").glob("*.py"))
    loaded, processor = AutoModel.from_pretrained(tmp_path / "clip"), AutoProcessor.from_pretrained(tmp_path / "clip")
    assert type(loaded) is CLIPModel
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    inputs = processor(text=CAPTIONS, images=picture, padding=True, truncation=True, return_tensors="pt")
    pixels = normalise(decode_picture(encoded(picture, "PNG"), 32, exact=True)[None])
    torch.testing.assert_close(inputs["pixel_values"], pixels, rtol=0, atol=1e-6)
    outputs = loaded(**inputs)
    torch.testing.assert_close(outputs.image_embeds, model.encode_image(pixels), rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs.text_embeds, model.encode_text(tokens(CAPTIONS)), rtol=0, atol=1e-5)
    assert float(loaded.logit_scale) == float(model.logit_scale)
    assert "GrowCLIP-DS as a baseline" in (tmp_path / "clip" / "README.md").read_text()
