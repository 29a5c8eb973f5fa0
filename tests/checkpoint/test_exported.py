"""Weights come back in: an exported folder is read as the checkpoint that it was made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from growclip_ds.architecture import Architecture
from growclip_ds.checkpoint.checkpoint import Checkpoint
from growclip_ds.checkpoint.exported import ExportedModel, is_exported
from growclip_ds.errors import InputError
from growclip_ds.evaluation.subject import find_subject
from growclip_ds.growth.inheritance import PIM, inherited_tensors
from growclip_ds.hub.export import export
from growclip_ds.hub.provenance import read_provenance
from tests.evaluation.models import tokenizer
from tests.hub.models import write_recorded_run


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Checkpoint]:
    """A folder of several weights files, and the checkpoint that it was made of."""
    tmp_path = tmp_path_factory.mktemp("exported")
    subject = find_subject(write_recorded_run(tmp_path / "run"))
    export(subject.load(), tokenizer(), tmp_path / "out", read_provenance(subject), max_shard_bytes=500_000)
    return tmp_path / "out", Checkpoint(subject.folder)


@pytest.fixture
def copy(exported: tuple[Path, Checkpoint], tmp_path: Path) -> Path:
    """A folder to damage."""
    return Path(shutil.copytree(exported[0], tmp_path / "copy"))


def change_config(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_it_reads_as_the_checkpoint_does(exported: tuple[Path, Checkpoint]) -> None:
    folder, checkpoint = exported
    model = ExportedModel(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert model.names == checkpoint.names
    assert (model.architecture, model.sizes) == (checkpoint.architecture, checkpoint.sizes)
    assert (model.end_of_text, model.spec) == (checkpoint.end_of_text, checkpoint.spec)
    assert model.digest(sorted(model.names)) == checkpoint.digest(sorted(checkpoint.names))
    for name in checkpoint.names:
        assert name in model
        assert model.shape(name) == checkpoint.shape(name)
        assert torch.equal(model.read(name), checkpoint.read(name)), name
    assert model.description["growth_step"] == 2
    assert [step["samples"] for step in model.growth] == [1000, 3000]


def test_what_grows_from_it_is_what_grows_from_the_checkpoint(exported: tuple[Path, Checkpoint]) -> None:
    folder, checkpoint = exported
    old, new = checkpoint.architecture, Architecture(2, 2, 2, 1, 3, 2)
    grown = []
    for source in (checkpoint, ExportedModel(folder)):
        tensors = inherited_tensors(old, new, source.sizes, source.read, PIM(), "0/3/finetune")
        grown.append(dict(tensors))
    assert grown[0].keys() == grown[1].keys()
    assert all(torch.equal(grown[0][name], grown[1][name]) for name in grown[0])


def test_a_model_saved_in_half_precision_is_read_in_fp32(exported: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    AutoModel.from_pretrained(exported[0], dtype="bfloat16").save_pretrained(tmp_path / "half")
    name = "text.embedding.tokens"
    assert torch.equal(ExportedModel(tmp_path / "half").read(name), exported[1].read(name).bfloat16().float())


def test_what_is_read_is_the_callers_own(exported: tuple[Path, Checkpoint]) -> None:
    model = ExportedModel(exported[0])
    model.read("logit_scale").zero_()
    assert torch.equal(model.read("logit_scale"), exported[1].read("logit_scale"))


def test_it_is_told_from_other_folders(copy: Path, tmp_path: Path) -> None:
    assert is_exported(copy)
    change_config(copy, model_type="clip")
    assert not is_exported(copy)
    assert not is_exported(tmp_path)
    with pytest.raises(InputError, match="a model of type 'clip', but only a GrowCLIP can grow"):
        ExportedModel(copy)


def test_what_cannot_be_read_is_one_error(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config.json: no such file; give a folder that `growclip export`"):
        ExportedModel(tmp_path)
    with pytest.raises(InputError, match=r"the model has no tensor made\.up"):
        ExportedModel(copy).read("made.up")
    change_config(copy, text_heads=3)
    with pytest.raises(InputError, match=r"text.embedding.tokens is F32 \[\d+, 128\], but config.json describes"):
        ExportedModel(copy)
    change_config(copy, text_heads=2, text_blocks=2)
    with pytest.raises(InputError, match=r"the model has no tensor text.blocks.1.attention_norm.weight"):
        ExportedModel(copy)
    change_config(copy, text_blocks="many")
    with pytest.raises(InputError, match="no valid GrowCLIP configuration"):
        ExportedModel(copy)
    change_config(copy, text_blocks=1, growth=[{"step": 1}])
    with pytest.raises(InputError, match="no valid GrowCLIP configuration"):
        ExportedModel(copy)
    change_config(copy, growth=[])
    first = min(copy.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{first.name}: cannot be read .*; copy the folder again"):
        ExportedModel(copy)
    first.unlink()
    with pytest.raises(InputError, match=f"{first.name}: no such file; the folder is incomplete"):
        ExportedModel(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        ExportedModel(copy)
