"""train.py as it is called: one clear error for bad input, the same on every rank, and a run under the launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import train
from tests.pipeline_runs import write_data
from tests.ranks import Ranks

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data with a space"))


def arguments(data: Path, run: Path, *more: str) -> list[str]:
    files = ["--deepspeed_config", str(data / "zero2.json"), "--config", str(data / "config.yaml")]
    return [*files, "--output-dir", str(run), *more]


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`deepspeed train.py` on two CPU ranks."""
    scripts = str(Path(sys.executable).parent)
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"  # as in an activated environment
    environment = os.environ | {"PATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [f"{scripts}/deepspeed", "--num_accelerators", "2", "--log_level", "error", "train.py", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rat=0.1", "learning_rate"),
        ("training.learning_rate=high", "training.learning_rate"),
        ("training.micro_batch_size=5", "take 4 or 8, or a global batch of"),
        ("growth.steps=9", "growth.steps is 9"),
        ("wings", "section.key=value"),
        ("--method=clip", "method is 'clip'; expected one of growclip, tfs, twp, sap, msclip, nas"),
    ],
)
def test_settings_that_cannot_be_used(data, tmp_path, capsys, override, message):
    assert train.main(arguments(data, tmp_path / "run", override)) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: error: ")
    assert message in error
    assert not (tmp_path / "run").exists()


def test_files_that_are_not_there(data, tmp_path, capsys):
    assert train.main([*arguments(data, tmp_path / "run"), "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
    assert train.main([*arguments(data, tmp_path / "run"), "--deepspeed_config", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_bad_data_stops_every_rank_with_one_message(data, tmp_path):
    overrides = ["data.subsets.1.shards=nowhere/subset_2", f"evaluation.datasets=['{data}/scenes/eval/scenes_objects']"]
    ranks = Ranks(arguments(data, tmp_path / "run", *overrides), tmp_path / "log")
    assert ranks.wait() == [2, 2], ranks.output
    errors = [line for line in ranks.output.splitlines() if "train.py: error:" in line]
    assert len(errors) == 1
    assert "data subset 's2'" in errors[0]
    assert "nowhere/subset_2" in errors[0]
    assert "Traceback" not in ranks.output
    assert not list((tmp_path / "run").glob("step_*"))


def test_a_growth_step_under_the_launcher(data, tmp_path):
    run = tmp_path / "a run"
    result = launch(*arguments(data, run, "--growth-step", "1", "data.workers=1"))
    assert result.returncode == 0, result.stderr
    assert (run / "step_1/train/phase.json").exists()
    assert "tensorboard --logdir" in result.stdout
    assert "\r" not in result.stdout  # plain lines where the output is no terminal
