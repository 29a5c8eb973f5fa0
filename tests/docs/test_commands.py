"""What the documentation tells to type: marked blocks run, other commands are at least command lines; links lead on."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import train
from docs.commands import Block, blocks, command_lines, run, script
from growclip_ds.cli.program import make_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = [page for page in PAGES if any("run" in block.marks for block in blocks(page))]
named = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def check(line: str) -> str | None:
    """Parses a command line of the project's; returns what it was taken for, if for anything.

    Raises:
        SystemExit: of argparse, if there is no such command, or it has no such option.
        AssertionError: it names a file or target that is not there.
    """
    line = re.sub(r"(^| )\[([^\[\]=]*)\]", r"\1\2", line)  # what may be left out
    words = shlex.split(line.partition(" > ")[0].replace(" && ", " ; ").partition(" ; ")[0])
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    program, rest = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "env":
        return check(shlex.join(word for word in rest))
    if program == "growclip" or "growclip_ds" in rest:
        arguments = rest if program == "growclip" else rest[rest.index("growclip_ds") + 1 :]
        if "--help" not in arguments and arguments != ["..."]:
            make_parser().parse_args([word for word in arguments if word not in ("...", "…")])
        return "growclip"
    if "train.py" in rest:
        train._parser().parse_intermixed_args(rest[rest.index("train.py") + 1 :])
        return "train.py"
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert all(word in targets or "=" in word for word in rest), line
        return "make"
    scripts = [word for word in words if re.fullmatch(r"(slurm|benchmarks|docs|tests)/\S+\.(sh|py)", word)]
    assert all((ROOT / word).exists() for word in scripts), line
    return program if scripts else None


@named
def test_every_command_is_one(page: Path) -> None:
    for block in blocks(page):
        for line in command_lines(block):
            try:
                check(line)
            except SystemExit:
                pytest.fail(f"{page.name}: {line}")
            except ValueError:
                continue  # no shell: a transcript, a formula


def test_commands_that_are_none_are_found() -> None:
    for line in (
        "growclip paint x",
        "growclip steps --colour",
        "deepspeed train.py --zero 9",
        "A=1 growclip data shake",
    ):
        with pytest.raises(SystemExit):
            check(line)
    for line in ("make tea", "sbatch slurm/none.sh"):
        with pytest.raises(AssertionError):
            check(line)
    assert check("torchrun --nproc-per-node 8 -m growclip_ds evaluate M --json results.json") == "growclip"
    assert check("deepspeed --num_accelerators 2 train.py --deepspeed_config a --config b") == "train.py"


@named
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        file, _, heading = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), f"{page.name} links to {target}"
        if heading:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles]
            assert heading in anchors, f"{page.name} links to {target}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_blocks_are_found_and_run_in_order(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```bash run quick\nmkdir a\ncd a\n```\ntext\n```\nnot run\n```\n"
        "1. in a list\n\n   ```bash run\n   pwd > b\n   ```\n\n```python run\nprint(open('b').read())\n```\n"
    )
    assert list(blocks(page))[2] == Block("bash", ("run",), "pwd > b\n")
    result = run(page, tmp_path)
    assert result.returncode == 0
    assert f"{tmp_path}/a" in result.stdout
    assert "cd a" in script(page, quick=True)
    assert "pwd" not in script(page, quick=True)
    page.write_text("```bash run\nfalse\necho on\n```\n")
    result = run(page, tmp_path)
    assert result.returncode == 1
    assert "echo on" not in result.stdout


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_quick_blocks_run(page: Path, tmp_path: Path) -> None:
    result = run(page, tmp_path, quick=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_blocks_that_are_to_be_run_do(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    result = run(page, tmp_path)
    assert result.returncode == 0, result.stdout
