"""Imports run one way: no module needs, to be imported, one that needs it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"growclip_ds": ROOT / "growclip_ds", "growclip_kernels": ROOT / "kernels" / "growclip_kernels"}
# What everything stands on, and what stands on everything.
GROUND = ("architecture", "errors", "files", "seeds", "signals")
TOP = ("cli", "inspection", "pipeline")


def modules() -> dict[str, Path]:
    """The file of each module."""
    found = {}
    for package, folder in PACKAGES.items():
        for file in folder.rglob("*.py"):
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = file
    return found


def imported(file: Path) -> Iterator[str]:
    """What a file imports as it is imported itself: not in functions, not for type checkers alone."""
    statements = list(ast.parse(file.read_text(encoding="utf-8")).body)
    while statements:
        match statements.pop():
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{module}.{name.name}" for name in names)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                pass
            case ast.If(body=body, orelse=more) | ast.Try(body=body, orelse=more):
                statements += [*body, *more]


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """The modules that each module imports."""
    known = modules()
    return {
        module: {name if name in known else name.rpartition(".")[0] for name in imported(file)} & known.keys()
        for module, file in known.items()
    }


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_no_module_imports_itself_by_way_of_others(graph: dict[str, set[str]]) -> None:
    assert len(graph["growclip_ds.training.trainer"]) > 5  # imports are found
    TopologicalSorter(graph).prepare()  # CycleError names the modules


def test_kernels_know_nothing_of_the_trainer(graph: dict[str, set[str]]) -> None:
    kernels = {module: needs for module, needs in graph.items() if module.startswith("growclip_kernels")}
    assert kernels
    assert not [module for module, needs in kernels.items() if any(n.startswith("growclip_ds") for n in needs)]


def test_what_stands_on_everything_is_imported_by_nothing_below(graph: dict[str, set[str]]) -> None:
    below = {module: needs for module, needs in graph.items() if room(module) not in (*TOP, "hub", "__main__")}
    assert not {module: upward for module, needs in below.items() if (upward := {n for n in needs if room(n) in TOP})}


def test_the_ground_stands_on_itself(graph: dict[str, set[str]]) -> None:
    for name in GROUND:
        module = f"growclip_ds.{name}"
        assert all(room(needed) in GROUND for needed in graph[module]), module
        assert not [one for one in imported(modules()[module]) if one.split(".")[0] in ("torch", "deepspeed")], module
