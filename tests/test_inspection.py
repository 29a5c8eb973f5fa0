"""`growclip inspect`: what it says of checkpoints and runs, whole, unfinished, damaged and of a fixed CLIP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.baselines.clip import clip_config
from growclip_ds.baselines.plan import CLIPPlan
from growclip_ds.checkpoint import save_model, write_checkpoint
from growclip_ds.cli import main
from growclip_ds.config import load_config
from growclip_ds.inspection import InspectedRun, inspect
from growclip_ds.model.growclip import GrowCLIP

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
        record = {"iterations": 7, "seconds": 65.0}
        save_model(GrowCLIP(architecture, **SMALL), phase / "weights", growth_step=step, phase="train", record=record)
    (folder / "step_1" / "train" / "phase.json").write_text(json.dumps({"iterations": 7, "seconds": 65.0}))
    for name, parts in (("finetune", 3), ("selection", 1)):
        phase = folder / "step_2" / name
        phase.mkdir()
        if name == "finetune":
            (phase / "phase.json").write_text(json.dumps({"iterations": parts, "seconds": 2.0}))
            continue
        resume = {"iteration": parts}
        save_model(GrowCLIP(SECOND, **SMALL), phase / "checkpoints" / "iteration_000000001", resume=resume, record={})
    return folder


def test_a_run_shows_phases_path_and_what_changed(run: Path) -> None:
    found = inspect(run)
    assert isinstance(found, InspectedRun)
    states = [(phase.step, str(phase.phase), phase.state, phase.iterations) for phase in found.phases]
    assert states == [
        (1, "train", "finished", 7),
        (2, "finetune", "finished", 3),
        (2, "selection", "interrupted", 1),
        (2, "train", "trained", 7),
        (3, "finetune", "not begun", None),
        (3, "selection", "not begun", None),
        (3, "train", "not begun", None),
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
    plan = CLIPPlan(clip_config(Architecture(0, 2, 2, 1, 1, 0), ModelSizes(**SMALL), 31))
    tensors = ((name, torch.zeros(shape)) for name, shape in plan.shapes.items())
    write_checkpoint(tmp_path / "clip", tensors, plan.shapes, lambda _: 0, plan.describe())
    assert main(["inspect", str(tmp_path / "clip"), "--verify"]) == 0
    text = capsys.readouterr().out
    assert "fixed CLIP" in text
    assert "convolutions" not in text.partition("Parameters")[0]
    assert main(["inspect", str(tmp_path / "clip"), "--png", str(tmp_path / "clip.png")]) == 2
    assert "--png draws GrowCLIPs" in capsys.readouterr().err


def test_what_is_neither_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no checkpoint and no run; give a folder with weights.json" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_a_run_that_has_just_begun(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new"
    new.mkdir()
    (new / "config.yaml").write_text((run / "config.yaml").read_text())
    assert main(["inspect", str(new)]) == 0
    assert "No growth step has a trained model yet" in capsys.readouterr().out
    assert main(["inspect", str(new), "--png", str(tmp_path / "x.png")]) == 2
    assert "no growth step has a trained model yet" in capsys.readouterr().err
