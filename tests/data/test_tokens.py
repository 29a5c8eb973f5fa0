from __future__ import annotations

import errno
import json
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers
from transformers import AutoTokenizer, CLIPTokenizerFast, PreTrainedTokenizerFast

from growclip_ds.data.tokens import END_OF_TEXT, START_OF_TEXT, Tokenizer, load_tokenizer, train_tokenizer
from growclip_ds.errors import InputError
from growclip_ds.model.packed import PackedTokens

CAPTIONS = [
    "A red circle above two small blue squares.",
    "two SMALL blue squares, and a  red circle\n",
    "the cell's membrane, magnified 400 times",
    "Größe der Stadt, naïve café — 東京 🙂",
] * 3


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(CAPTIONS, vocab_size=340, context_length=64)


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """CLIP's own two files, small: 256 bytes, the same ending a word, a few merges, the special tokens last."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["r e", "re d</w>", "c i"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    folder = tmp_path / "clip"
    folder.mkdir()
    vocabulary = {token: place for place, token in enumerate([*tokens, START_OF_TEXT, END_OF_TEXT])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return folder


def rows(text: PackedTokens) -> list[list[int]]:
    return [part.tolist() for part in text.ids.split(text.cu_seqlens.diff().tolist())]


def test_packed_captions(trained: Tokenizer) -> None:
    text = trained(["red circle", "", "a"])
    start, end = trained.start_of_text, trained.end_of_text
    assert text.ids.dtype == torch.int64
    assert [(row[0], row[-1]) for row in rows(text)] == [(start, end)] * 3
    assert rows(text)[1] == [start, end]
    assert text.num_captions == 3
    assert text.max_seqlen == max(map(len, rows(text)))


def test_special_tokens_come_last(trained: Tokenizer) -> None:
    assert trained.vocab_size == 340
    assert (trained.start_of_text, trained.end_of_text) == (338, 339)


def test_few_captions_fill_no_large_vocabulary() -> None:
    tokenizer = train_tokenizer(["abc"], vocab_size=5000, context_length=8)
    assert 258 <= tokenizer.vocab_size < 300
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1


def test_no_captions_at_all(trained: Tokenizer) -> None:
    text = trained([])
    assert text.ids.shape == (0,)
    assert text.cu_seqlens.tolist() == [0]


@pytest.mark.parametrize("length", [2, 3, 10])
def test_truncation_keeps_the_end_of_text(trained: Tokenizer, length: int) -> None:
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=340, context_length=length)
    whole = rows(trained([CAPTIONS[0]]))[0]
    assert len(whole) > 10
    cut = tokenizer([CAPTIONS[0], ""])
    assert rows(cut) == [[*whole[: length - 1], tokenizer.end_of_text], [whole[0], tokenizer.end_of_text]]
    assert cut.max_seqlen == length


def test_case_and_white_space_do_not_matter(trained: Tokenizer) -> None:
    same = rows(trained(["a red circle", " A Red\n\tCIRCLE ", "a  red circle"]))
    assert same[0] == same[1] == same[2]


def test_any_text_survives(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "tokenizer")
    reader = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    for caption in [*CAPTIONS, "нигде не виданные слова ½ \x00 \x7f"]:
        expected = " ".join(caption.split()).lower()
        assert reader.decode(rows(trained([caption]))[0], skip_special_tokens=True).strip() == expected
        assert reader(caption)["input_ids"] == rows(trained([caption]))[0]


def test_special_tokens_written_in_a_caption_are_text(trained: Tokenizer) -> None:
    for tokenizer in (trained, pickle.loads(pickle.dumps(trained))):
        (row,) = rows(tokenizer([f"a {END_OF_TEXT} b {START_OF_TEXT}"]))
        assert tokenizer.end_of_text not in row[:-1]
        assert tokenizer.start_of_text not in row[1:]


def test_training_is_deterministic(trained: Tokenizer, tmp_path: Path) -> None:
    """Also in a process with other hash seeds and another number of threads."""
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps(CAPTIONS))
    program = (
        "import json, pathlib, sys; from growclip_ds.data.tokens import train_tokenizer;"
        "captions = json.loads(pathlib.Path(sys.argv[1]).read_text());"
        "train_tokenizer(captions, 340, 64).save(sys.argv[2])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", program, str(captions), str(tmp_path / "there")]
    subprocess.run(arguments, check=True, env=environment)
    trained.save(tmp_path / "here")
    here, there = ((tmp_path / place / "tokenizer.json").read_text() for place in ("here", "there"))
    assert here == there


def test_saved_and_loaded(trained: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "tokenizer"
    trained.save(folder)
    assert sorted(file.name for file in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    loaded = load_tokenizer(folder, context_length=64)
    for attribute in ("vocab_size", "context_length", "start_of_text", "end_of_text"):
        assert getattr(loaded, attribute) == getattr(trained, attribute)
    assert rows(loaded(CAPTIONS)) == rows(trained(CAPTIONS))
    assert load_tokenizer(folder, context_length=5)(CAPTIONS).max_seqlen == 5


def test_a_full_disk_leaves_no_part_of_a_tokenizer(
    trained: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the library raises then is no OSError."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        trained.save(tmp_path / "tokenizer")
    assert list(tmp_path.iterdir()) == []


def test_saving_among_other_files_leaves_them(trained: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "tokenizer.json").write_text("old")
    trained.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert rows(load_tokenizer(tmp_path, 64)(CAPTIONS)) == rows(trained(CAPTIONS))


def test_pickled_for_workers(trained: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(trained))
    assert rows(copy(CAPTIONS)) == rows(trained(CAPTIONS))
    assert (copy.vocab_size, copy.end_of_text) == (trained.vocab_size, trained.end_of_text)


def test_clips_own_format(clip_folder: Path) -> None:
    clip = load_tokenizer(clip_folder, context_length=12)
    assert clip.vocab_size == 512 + 3 + 2
    assert (clip.start_of_text, clip.end_of_text) == (515, 516)
    original = CLIPTokenizerFast.from_pretrained(clip_folder)
    captions = ["A red Circle", "", "red " * 50]
    expected = original(captions, truncation=True, max_length=12)["input_ids"]
    assert rows(clip(captions)) == expected
    assert rows(clip(["red"])) == [[515, 513, 516]]


def test_clips_own_survives_saving(clip_folder: Path, tmp_path: Path) -> None:
    clip = load_tokenizer(clip_folder, context_length=12)
    clip.save(tmp_path / "saved")
    assert rows(load_tokenizer(tmp_path / "saved", 12)(["A red Circle's"])) == rows(clip(["A red Circle's"]))


def test_a_tokenizer_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"tokenizer 'nobody/nothing' cannot be loaded: .* copy .* into a folder"):
        load_tokenizer("nobody/nothing", 77)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be loaded: the folder must hold tokenizer\.json"):
        load_tokenizer(tmp_path, 77)


def test_a_tokenizer_without_a_start_of_text(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "end": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="end").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="must be a fast one with a start-of-text and an end-of-text token"):
        load_tokenizer(tmp_path, 77)


def test_a_vocabulary_too_small_for_bytes() -> None:
    with pytest.raises(InputError, match=r"vocab_size is 100, .* at least 258"):
        train_tokenizer(CAPTIONS, vocab_size=100, context_length=8)
