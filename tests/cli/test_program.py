"""The command line: what it makes, and how it says what is wrong."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import train
from growclip_ds.cli.program import main, make_parser
from tests.cli.test_init import ROOT

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
        "import sys, growclip_ds.cli.program",
        "try: growclip_ds.cli.program.main(['--help'])",
        "except SystemExit: sys.exit('torch' in sys.modules)",
    ]
    assert subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, check=False).returncode == 0


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert capsys.readouterr().out == f"growclip-ds {version[1]}\n"


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its subcommands, at any depth."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from parsers(inner)


def test_every_command_says_what_it_does_and_takes() -> None:
    for parser in parsers(make_parser()):
        assert parser.description, parser.prog
        for action in parser._actions:
            commands = isinstance(action, argparse._SubParsersAction)
            explained = [choice.help for choice in action._choices_actions] if commands else [action.help]
            assert all(explained), (parser.prog, action.dest)


def test_every_example_in_the_help_is_a_command_line() -> None:
    found = 0
    for parser in parsers(make_parser()):
        for line in re.findall(r"^  (growclip .*|deepspeed .*|torchrun .*)$", parser.epilog or "", re.MULTILINE):
            words = shlex.split(line.partition(" > ")[0])
            if words[-2:] == ["COMMAND", "--help"]:
                continue
            found += 1
            if "train.py" in words:
                train._parser().parse_intermixed_args(words[words.index("train.py") + 1 :])
                continue
            start = words.index("growclip" if words[0] == "growclip" else "growclip_ds")
            make_parser().parse_args(words[start + 1 :])
    assert found > 10


@pytest.mark.parametrize(
    "line",
    [
        "data add {there} name {missing}",
        "data check {missing}",
        "data check {missing}.yaml",
        "data stage --to {there} --config {missing}",
        "evaluate {missing} --device cpu",
        "evaluate {missing} --config {missing}",
        "steps --config {missing} --output-dir {there}",
        "watch --config {missing} --output-dir {there} --once",
        "report {missing} --output {there}",
        "export {missing} {there}",
        "inspect {missing}",
        "plan --config {missing}",
        "plan --config configs/demo.yaml --deepspeed_config {missing}",
        "plan --config configs/demo.yaml --hardware {missing}",
    ],
)
def test_a_file_that_is_not_there_is_one_line_and_exit_code_2(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.format(missing=tmp_path / "none", there=tmp_path / "run").split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("growclip: error: ")
    assert str(tmp_path / "none") in error
    assert error.count("\n") == 1


def test_a_reader_that_has_read_enough_is_no_traceback(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data: {subsets: [{name: a, shards: b}], tokenizer: {vocab_size: 300}}")
    command = [sys.executable, "-m", "growclip_ds", "steps", "--config", str(config), "--output-dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


@pytest.mark.parametrize("line", ["--help", "--version", "steps --config {config} --output-dir none"])
def test_a_full_disk_behind_the_output_is_one_line_and_exit_code_2(line: str, tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    config = tmp_path / "config.yaml"
    config.write_text("data: {subsets: [{name: a, shards: b}], tokenizer: {vocab_size: 300}}")
    command = [sys.executable, "-m", "growclip_ds", *line.format(config=config).split()]
    with full.open("w") as output:
        ended = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    error = "growclip: error: the output cannot be written: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (2, error)


def test_an_interrupt_while_it_is_imported_is_no_traceback() -> None:
    lines = [
        "import sys",
        "from growclip_ds.__main__ import main",
        "class Interrupt:",
        "    def find_spec(name, path=None, target=None):",
        "        if name == 'growclip_ds.cli.watch': raise KeyboardInterrupt",
        "sys.meta_path.insert(0, Interrupt)",
        "sys.exit(main())",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "growclip: interrupted\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_every_command_and_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for parser in parsers(make_parser()):
        assert parser.prog.split()[-1] in script
        for action in parser._actions:
            for option in action.option_strings:
                assert action.help == argparse.SUPPRESS or option.lstrip("-") in script, (parser.prog, option)


def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As bash does when Tab is pressed behind `growclip ev` and `growclip steps --un`."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    main(["completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    for words, expected in (("growclip ev", "evaluate"), ("growclip steps --un", "--unfinished")):
        code = f"""
            source {tmp_path}/script
            COMP_WORDS=({words}) COMP_CWORD={len(words.split()) - 1}
            function_name=$(complete -p growclip | sed -E 's/.*-F ([^ ]+).*/\\1/')
            $function_name growclip {words.split()[-1]} {words.split()[-2]}
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        result = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
        assert result.stdout.split() == [expected], result.stderr


def test_steps_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "step_1/train").mkdir(parents=True)
    (tmp_path / "step_1/train/phase.json").write_text("{}")
    config = tmp_path / "config.yaml"
    config.write_text("data: {subsets: [{name: a, shards: b}, {name: c, shards: d}], tokenizer: {vocab_size: 300}}")
    line = ["steps", "--config", str(config), "--output-dir", str(tmp_path), "--json"]
    assert main(line) == 0
    assert json.loads(capsys.readouterr().out) == [{"step": 1, "finished": True}, {"step": 2, "finished": False}]
    assert main([*line, "--unfinished"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"step": 2, "finished": False}]
