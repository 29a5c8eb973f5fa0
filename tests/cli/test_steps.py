"""`growclip steps`: what is finished, as the run's folder has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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
