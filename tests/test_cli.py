"""The command line: what it makes, and how it says what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from growclip_ds.cli import main

SMALL = ["--samples", "6", "--subsets", "2", "--size", "32", "--eval-samples", "60", "--workers", "1"]


def test_data_scenes_writes_and_then_finds_it_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scenes"
    assert main(["data", "scenes", str(out), *SMALL]) == 0
    assert "6 training pairs in 2 subsets" in capsys.readouterr().out
    assert sorted(path.name for path in (out / "train").iterdir()) == ["subset_1", "subset_2"]
    assert sorted(path.name for path in (out / "eval").iterdir()) == [
        "scenes_objects",
        "scenes_retrieval",
        "scenes_selection",
    ]
    assert main(["data", "scenes", str(out), *SMALL]) == 0
    assert capsys.readouterr().out == f"{out} is complete already\n"


def test_wrong_input_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "scenes", str(tmp_path / "scenes"), "--samples", "0"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "growclip: error: --samples must be at least 3, one for each subset, not 0\n"


@pytest.mark.parametrize(
    "line", [[], ["data"], ["data", "scenes"], ["paint"], ["data", "scenes", "x", "--sample", "a"]]
)
def test_a_line_that_is_no_command_shows_the_usage(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(line)
    assert exit_.value.code == 2
    assert "usage: growclip" in capsys.readouterr().err


def test_an_interrupt_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("growclip_ds.data.scenes.write.write_scenes", interrupted)
    assert main(["data", "scenes", str(tmp_path / "scenes")]) == 130
    assert capsys.readouterr().err == "growclip: interrupted\n"


def test_help_does_not_wait_for_torch() -> None:
    lines = [
        "import sys, growclip_ds.cli",
        "try: growclip_ds.cli.main(['--help'])",
        "except SystemExit: sys.exit('torch' in sys.modules)",
    ]
    assert subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, check=False).returncode == 0
