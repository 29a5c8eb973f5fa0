"""`path.py: name` in docs/method.md and docs/extending.md: each names something that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("method.md", "extending.md")


def places(page: str) -> list[tuple[str, str]]:
    return re.findall(r"`([\w/]+\.py): ([\w.]+)`", (ROOT / "docs" / page).read_text(encoding="utf-8"))


def find(body: list[ast.stmt], names: list[str]) -> bool:
    """Whether a name, or a name in a class, is defined."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == names[0]:
            return len(names) == 1 or find(node.body, names[1:])
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == names[0] for target in targets):
            return len(names) == 1
    return False


def is_there(file: str, name: str) -> bool:
    path = ROOT / ("kernels" if file.startswith("growclip_kernels") else "") / file
    return path.exists() and find(ast.parse(path.read_text(encoding="utf-8")).body, name.split("."))


@pytest.mark.parametrize("page", PAGES)
def test_every_place_is_there(page: str) -> None:
    missing = [f"{file}: {name}" for file, name in places(page) if not is_there(file, name)]
    assert not missing
    assert len(places(page)) > 5


def test_what_is_not_there_is_found() -> None:
    assert is_there("growclip_ds/model/growclip.py", "GrowCLIP.forward")
    assert not is_there("growclip_ds/model/growclip.py", "GrowCLIP.backward")
    assert not is_there("growclip_ds/model/growclip.py", "forward")
    assert not is_there("growclip_ds/none.py", "GrowCLIP")


def test_every_equation_of_the_paper_has_its_place() -> None:
    table = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d, ]+) \|.*`\w.*\.py: ", table, re.MULTILINE)
    assert sorted(int(number) for row in rows for number in row.split(",")) == list(range(1, 10))
