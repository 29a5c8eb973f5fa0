"""`growclip steps`: what is finished, as the run's folder has it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from growclip_ds.architecture import Architecture
from growclip_ds.cli.program import main
from growclip_ds.growth.phases import Phase
from growclip_ds.run.folder import RunFolder
from tests.records import phase_record


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    data = {"subsets": [{"name": f"s{i}", "shards": f"s{i}"} for i in (1, 2, 3)], "tokenizer": {"vocab_size": 300}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    return ["steps", "--config", str(tmp_path / "config.yaml"), "--output-dir", str(tmp_path / "run")]


def test_steps_and_those_left(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path / "run")
    run.finish(phase_record(1))
    run.finish(phase_record(2, Phase.SELECTION))  # not the last of its step
    assert main(command) == 0
    assert capsys.readouterr().out == "1 finished\n2 unfinished\n3 unfinished\n"
    assert main([*command, "--unfinished", "growth.steps=2"]) == 0
    assert capsys.readouterr().out == "2\n"


def test_a_model_to_start_with_brings_finished_steps(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until the run has begun: then its folder has them."""
    architecture = asdict(Architecture(0, 1, 1, 1, 1, 0))
    growth = [{"step": n, "parameters": 1, "samples": 1, "architecture": architecture} for n in (1, 2)]
    exported = tmp_path / "exported"
    exported.mkdir()
    (exported / "config.json").write_text(json.dumps({"model_type": "growclip", "growth": growth}))
    command += ["--unfinished", f"model.start={exported}"]
    assert main(command) == 0
    assert capsys.readouterr().out == "3\n"
    (exported / "config.json").write_text(json.dumps({"model_type": "growclip"}))  # of no run
    assert main(command) == 0
    assert capsys.readouterr().out == "2\n3\n"
    (exported / "config.json").unlink()
    assert main(command) == 2
    assert "exported/config.json: no such file" in capsys.readouterr().err
    RunFolder(tmp_path / "run").finish(phase_record(1))
    assert main(command) == 0
    assert capsys.readouterr().out == "2\n3\n"


def test_it_does_not_wait_for_torch(command: list[str]) -> None:
    code = f"import sys; from growclip_ds.cli.program import main; main({command!r}); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_configuration_that_is_not_there(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--config", "none.yaml"]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_a_run_that_is_a_file(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").write_text("")
    assert main(command) == 2
    assert "run is not a folder" in capsys.readouterr().err
