"""docs/extending.md, followed: each example applies to the code as it is, and its own tests pass."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATCHES = sorted((ROOT / "docs/examples").glob("*.patch"))
each = pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)


def apply(patch: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "apply", "--unsafe-paths", f"--directory={folder}", *options, str(patch)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code and its tests."""
    for name in (
        "growclip_ds",
        "kernels",
        "tests",
        "configs",
        "ds_configs",
        "benchmarks",
        "train.py",
        "pyproject.toml",
    ):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        else:
            shutil.copy(source, tmp_path)
    return tmp_path


def test_there_is_an_example_of_each_and_the_page_names_it() -> None:
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    assert [patch.stem for patch in PATCHES] == ["baseline", "growth_dimension", "kernel"]
    assert all(f"(examples/{patch.name})" in page for patch in PATCHES)


@each
def test_the_example_applies(patch: Path, copy: Path) -> None:
    result = apply(patch, copy)
    assert result.returncode == 0, f"make {patch.name} anew: {result.stderr}"


@pytest.mark.slow
@each
def test_the_example_passes_its_tests(patch: Path, copy: Path) -> None:
    assert apply(patch, copy).returncode == 0
    changed = re.findall(
        r"^\+\+\+ b/(tests(?:/.+)?)/(?:test_)?(\w+)\.py$", patch.read_text(encoding="utf-8"), re.MULTILINE
    )
    added = [test for folder, name in changed if (copy / (test := f"{folder}/test_{name}.py")).exists()]
    assert added
    environment = os.environ | {"PYTHONPATH": f"{copy}{os.pathsep}{copy / 'kernels'}"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *added]
    result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    code = "import growclip_ds, growclip_kernels; print(growclip_ds.__file__, growclip_kernels.__file__)"
    places = subprocess.run([sys.executable, "-c", code], cwd=copy, env=environment, capture_output=True, text=True)
    assert all(place.startswith(str(copy)) for place in places.stdout.split())
