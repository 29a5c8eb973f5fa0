"""`growclip init`: a folder that everything can be started from."""

from __future__ import annotations

from pathlib import Path

import pytest

from growclip_ds.cli.program import main
from growclip_ds.config.config import load_config
from growclip_ds.config.deepspeed import load_deepspeed_config

ROOT = Path(__file__).parents[2]


def test_the_folder_holds_what_a_checkout_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "project"
    assert main(["init", str(folder)]) == 0
    written = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert capsys.readouterr().out == f"{folder}: {len(written)} files written, 0 were there\n"
    assert {"train.py", "configs/cc12m.yaml", "configs/eval/paper.yaml", "slurm/grow_run.sh"} < set(written)
    assert (folder / "slurm/grow_run.sh").stat().st_mode & 0o100  # may be run
    assert all((folder / file).read_bytes() == (ROOT / file).read_bytes() for file in written)
    load_config(folder / "configs/demo.yaml")
    for file in (ROOT / "ds_configs").glob("*.json"):
        load_deepspeed_config(folder / "ds_configs" / file.name)


def test_files_that_are_there_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/cc12m.yaml").write_text("mine")
    assert main(["init", str(tmp_path)]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first.endswith(" files written, 1 were there")
    assert others[1:] == [f"  {tmp_path / 'configs/cc12m.yaml'}"]
    assert (tmp_path / "configs/cc12m.yaml").read_text() == "mine"


def test_files_of_an_older_version_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path)]) == 0
    with (tmp_path / "slurm/common.sh").open("a") as script:
        script.write("# as it was\n")
    capsys.readouterr()
    assert main(["init", str(tmp_path)]) == 0
    first, _, *named = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path}: 0 files written, ")
    assert named == [f"  {tmp_path / 'slurm/common.sh'}"]
    (tmp_path / "slurm/common.sh").unlink()
    assert main(["init", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}: 1 files written, ")


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["init", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"growclip: error: {tmp_path / 'file'}")
    assert error.count("\n") == 1
