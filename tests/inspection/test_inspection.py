"""`growclip inspect`: what it says of checkpoints and runs, whole, unfinished, damaged and of a fixed CLIP."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.baselines.clip import clip_config
from growclip_ds.baselines.spec import CLIPSpec
from growclip_ds.checkpoint.checkpoint import save_model, write_checkpoint
from growclip_ds.cli.program import main
from growclip_ds.config.config import load_config
from growclip_ds.evaluation.subject import find_subject
from growclip_ds.growth.phases import Phase
from growclip_ds.hub.export import export
from growclip_ds.hub.provenance import read_provenance
from growclip_ds.inspection.inspection import inspect
from growclip_ds.inspection.runs import InspectedRun
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.run.folder import RunFolder
from growclip_ds.run.lock import RunLock
from growclip_ds.run.records import described
from tests.evaluation.models import tokenizer
from tests.hub.models import write_recorded_run
from tests.records import phase_record

SMALL = {"vocab_size": 32, "context_length": 8, "image_size": 32, "embed_dim": 16}
FIRST, SECOND = Architecture(0, 1, 1, 1, 2, 0), Architecture(1, 2, 2, 1, 2, 1)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two growth steps of three, of which the second is trained and not evaluated."""
    folder = tmp_path / "run"
    folder.mkdir()
    file = folder / "config.yaml"
    subsets = ", ".join(f"{{name: s{n}, shards: s{n}.tar}}" for n in range(3))
    file.write_text(f"data: {{subsets: [{subsets}], tokenizer: {{vocab_size: 300}}}}")
    file.write_text(load_config(file).to_yaml())
    for step, architecture in ((1, FIRST), (2, SECOND)):
        phase = folder / f"step_{step}" / "train"
        record = phase_record(step, iterations=7, seconds=65.0)
        save_model(GrowCLIP(architecture, **SMALL), phase / "weights", **described(record))
    RunFolder(folder).finish(phase_record(1, iterations=7, seconds=65.0))
    for name, parts in (("finetune", 3), ("selection", 1)):
        phase = folder / "step_2" / name
        phase.mkdir()
        if name == "finetune":
            RunFolder(folder).finish(phase_record(2, Phase.FINETUNE, iterations=parts, seconds=2.0))
            continue
        so_far = described(phase_record(2, Phase.SELECTION, iterations=0))
        so_far |= {"resume": {"iteration": parts, "iterations": 1875}}
        save_model(GrowCLIP(SECOND, **SMALL), phase / "checkpoints" / "iteration_000000001", **so_far)
    return folder


def test_a_run_shows_phases_path_and_what_changed(run: Path) -> None:
    found = inspect(run)
    assert isinstance(found, InspectedRun)
    states = [(phase.step, str(phase.phase), phase.state, phase.iterations, phase.total) for phase in found.phases]
    assert states == [
        (1, "train", "finished", 7, 7),
        (2, "finetune", "finished", 3, 3),
        (2, "selection", "interrupted", 1, 1875),
        (2, "train", "trained", 7, 7),
        (3, "finetune", "not begun", None, None),
        (3, "selection", "not begun", None, None),
        (3, "train", "not begun", None, None),
    ]
    growth = found.growth[2]
    assert growth.dimensions == {
        "conv_layers": (0, 1),
        "image_blocks": (1, 2),
        "image_heads": (1, 2),
        "shared_blocks": (0, 1),
    }
    sizes = ModelSizes(**SMALL)
    assert growth.parameters == sizes.parameters_of(SECOND) - sizes.parameters_of(FIRST)
    assert growth.widened["image.stem.patches.weight"] == ((64, 64, 8, 8), (128, 64, 8, 8))
    assert "image.stem.layers.0.conv.weight" in growth.new
    assert "image.blocks.1.mlp.expand.weight" in growth.new
    before, after = FIRST.parameter_shapes(sizes), SECOND.parameter_shapes(sizes)
    assert growth.new.keys() == after.keys() - before.keys()
    assert growth.kept + len(growth.widened) == len(before)


def test_a_run_that_is_being_trained_says_where(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = RunLock(run)
    found = inspect(run)
    assert [one.state for one in found.phases] == ["finished", "finished", "running", "trained", *["not begun"] * 3]
    assert main(["inspect", str(run)]) == 0
    text = capsys.readouterr().out
    assert f"Running now: {socket.gethostname()}, pid {os.getpid()}" in text
    assert re.search(r"selection +running +1 of 1,875 ", text)
    held.close()
    assert inspect(run).running is None
    RunLock(run).close()  # the look itself leaves nothing locked


def test_a_checkpoint_shows_its_parts(run: Path) -> None:
    model = inspect(run / "step_2" / "train").model
    assert model.architecture == SECOND
    assert model.parameters == ModelSizes(**SMALL).parameters_of(SECOND)
    assert list(model.parts) == [
        "image.stem",
        "image.embedding",
        "image.blocks",
        "text.embedding",
        "text.blocks",
        "shared.blocks",
        "image_head",
        "text_head",
    ]
    assert model.parts["text.embedding"] == (32 + 8) * 128


def test_prints_draws_and_writes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, png = tmp_path / "inspected.json", tmp_path / "drawn.png"
    assert main(["inspect", str(run), "--verify", "--json", str(out), "--png", str(png)]) == 0
    text = capsys.readouterr().out
    for words in (
        "step_2/train/weights",
        "image_blocks 1 → 2",
        "64 × 64 × 8 × 8   128 × 64 × 8 × 8",
        "all checksums verified",
        "shared: 1 block, 2 heads, 128 channels",
        "2 convolutions, 32 px, 64 wide",
    ):
        assert words in text
    values = json.loads(out.read_text())
    assert values["models"]["2"]["verified"] is True
    assert values["growth"]["2"]["dimensions"]["conv_layers"] == [0, 1]
    assert png.read_bytes().startswith(b"\x89PNG")


def test_verifying_finds_a_flipped_bit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = next((run / "step_2" / "train" / "weights").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    assert main(["inspect", str(run)]) == 0
    assert "checksums not verified (--verify)" in capsys.readouterr().out
    assert main(["inspect", str(run), "--verify"]) == 2
    error = capsys.readouterr().err
    assert "is damaged (its checksum differs); copy the checkpoint again" in error
    assert error.count("\n") == 1


def test_a_fixed_clip_is_shown_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = CLIPSpec(clip_config(Architecture(0, 2, 2, 1, 1, 0), ModelSizes(**SMALL), 31))
    tensors = ((name, torch.zeros(shape)) for name, shape in spec.shapes.items())
    write_checkpoint(tmp_path / "clip", tensors, spec.shapes, lambda _: 0, spec.describe())
    assert main(["inspect", str(tmp_path / "clip"), "--verify"]) == 0
    text = capsys.readouterr().out
    assert "fixed CLIP" in text
    assert "convolutions" not in text.partition("Parameters")[0]
    assert main(["inspect", str(tmp_path / "clip"), "--png", str(tmp_path / "clip.png")]) == 2
    assert "--png draws GrowCLIPs" in capsys.readouterr().err


def test_what_is_neither_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no checkpoint and no run; give a folder with weights.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert main(["inspect", str(tmp_path)]) == 2
    assert "has a config.json, but no *.safetensors" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "none")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_a_run_that_has_just_begun(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new"
    new.mkdir()
    (new / "config.yaml").write_text((run / "config.yaml").read_text())
    assert main(["inspect", str(new)]) == 0
    assert "No growth step has a trained model yet" in capsys.readouterr().out
    assert main(["inspect", str(new), "--png", str(tmp_path / "x.png")]) == 2
    assert "no growth step has weights yet" in capsys.readouterr().err


def test_a_growth_step_of_a_run_is_said_to_be_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run / "step_2")]) == 2
    words = f"is a growth step of a run; give the run, or one of its phases, such as {run / 'step_2' / 'train'}"
    assert words in capsys.readouterr().err


def test_growth_steps_that_came_with_a_model_had_their_phases_elsewhere(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a model that has been through two growth steps a run has the weights of the second."""
    shutil.rmtree(run / "step_1" / "train" / "weights")
    for phase in ("finetune", "selection"):
        shutil.rmtree(run / "step_2" / phase)
    for step in (1, 2):
        RunFolder(run).finish(phase_record(step, iterations=0, seconds=0.0, training=None, start="exported"))
    held = RunLock(run)
    found = inspect(run)
    assert main(["inspect", str(run)]) == 0
    held.close()
    assert isinstance(found, InspectedRun)
    assert [(phase.step, str(phase.phase), phase.state) for phase in found.phases[:3]] == [
        (1, "train", "given"),
        (2, "train", "given"),
        (3, "finetune", "running"),
    ]
    assert found.without_weights == []
    assert "are not here" not in capsys.readouterr().out


def test_a_run_without_weights_is_not_called_untrained(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "step_1" / "train" / "weights")
    assert main(["inspect", str(run)]) == 0
    text = capsys.readouterr().out
    assert "Growth step 1 is finished, but its weights are not here." in text
    assert "The newest model, of growth step 2" in text
    shutil.rmtree(run / "step_2")
    assert main(["inspect", str(run)]) == 0
    assert "No growth step has a trained model yet" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"iterations": "x", "seconds": 1}'])
def test_a_damaged_record_is_one_line(run: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "step_1" / "train" / "phase.json"
    file.write_text(text)
    assert main(["inspect", str(run)]) == 2
    error = capsys.readouterr().err
    assert f"{file} is damaged: " in error
    assert error.count("\n") == 1


def test_models_in_hugging_face_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subject = find_subject(write_recorded_run(tmp_path / "run"))
    export(subject.load(), tokenizer(), tmp_path / "grown", read_provenance(subject))
    assert main(["inspect", str(tmp_path / "grown"), "--verify", "--json", "-"]) == 0
    values = json.loads(capsys.readouterr().out)
    checkpoint = inspect(subject.folder)
    assert values["model"] == json.loads(json.dumps(checkpoint.model.to_json()))
    assert (values["growth_step"], values["has_checksums"], values["verified"]) == (2, False, True)
    assert main(["inspect", str(tmp_path / "grown")]) == 0
    assert "tensors not read (--verify); the Hugging Face format has no checksums" in capsys.readouterr().out

    config = clip_config(Architecture(0, 2, 2, 1, 1, 0), ModelSizes(**SMALL), 31)
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "clip")]) == 0
    assert "fixed CLIP (transformers' layout) (0, 2, 2, 1, 1, 0)" in capsys.readouterr().out
    config.vision_config.num_attention_heads = 1
    CLIPModel(config).save_pretrained(tmp_path / "wide")
    assert main(["inspect", str(tmp_path / "wide")]) == 0
    assert "2 blocks, 1 head, 128 wide" in capsys.readouterr().out
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"damaged")
    assert main(["inspect", str(tmp_path / "clip")]) == 2
    assert "model.safetensors: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--png", "drawn.svg"], "--png drawn.svg: name a file that ends in .png"),
        (["--png", "."], ". is a folder; name a file in it"),
        (["--png", "/proc/nowhere/drawn.png"], "/proc/nowhere/drawn.png cannot be written"),
        (["--json", "/dev/null/values.json"], "/dev/null is not a folder"),
    ],
)
def test_places_that_cannot_be_written(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(run), *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


def test_a_drawing_makes_its_folder(run: Path, tmp_path: Path) -> None:
    assert main(["inspect", str(run), "--png", str(tmp_path / "new" / "drawn.png")]) == 0
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["drawn.png"]
