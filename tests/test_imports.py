"""Imports run one way: each room needs only those that stand below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"growclip_ds": ROOT / "growclip_ds", "growclip_kernels": ROOT / "kernels" / "growclip_kernels"}
# From the ground up.
ROOMS = (
    "errors", "files", "seeds", "signals", "architecture", "distributed", "yaml_files", "results",
    "model", "optim", "data", "config", "growth", "baselines", "checkpoint", "run", "monitor", "evaluation",
    "training", "pipeline", "costs", "reporting", "hub", "inspection", "cli", "__main__",
)  # fmt: skip
GROUND = ("errors", "files", "seeds", "architecture", "results")
WITHOUT_TORCH = ("growclip_ds", *(f"growclip_ds.{name}" for name in GROUND))


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


def packages_of(module: str) -> set[str]:
    """The packages that a module is in, which are imported before it."""
    parts = module.split(".")
    return {".".join(parts[:depth]) for depth in range(1, len(parts))}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """The modules that each module imports."""
    known, found = modules(), {}
    for module, file in known.items():
        needed = {name if name in known else name.rpartition(".")[0] for name in imported(file)} & known.keys()
        found[module] = (needed.union(*map(packages_of, needed)) - packages_of(module) - {module}) & known.keys()
    return found


def room(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def test_no_module_imports_itself_by_way_of_others(graph: dict[str, set[str]]) -> None:
    assert "growclip_ds.evaluation" in graph["growclip_ds.pipeline.evaluator"]  # imports are found
    TopologicalSorter(graph).prepare()  # CycleError names the modules


def test_rooms_stand_on_those_below(graph: dict[str, set[str]]) -> None:
    own = {module: needed for module, needed in graph.items() if room(module) and module.startswith("growclip_ds")}
    assert {room(module) for module in own} == set(ROOMS)
    upward = [
        f"{module} imports {other}"
        for module, needed in own.items()
        for other in needed
        if room(other) in ROOMS and ROOMS.index(room(other)) > ROOMS.index(room(module))
    ]
    assert not upward


def test_kernels_know_nothing_of_the_trainer(graph: dict[str, set[str]]) -> None:
    kernels = {module: needed for module, needed in graph.items() if module.startswith("growclip_kernels")}
    assert kernels
    assert not [module for module, needed in kernels.items() if any(n.startswith("growclip_ds") for n in needed)]


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_the_ground_waits_for_no_library(module: str) -> None:
    slow = ("torch", "deepspeed", "transformers", "numpy")
    assert not [name for name in imported(modules()[module]) if name.split(".")[0] in slow]
