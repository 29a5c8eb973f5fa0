"""What is installed: the wheel's contents, and that the commands work from it alone.

`pip wheel` and `pip install` run without the network: build and run requirements are those of this environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
SOURCES = ("growclip_ds", "kernels", "configs", "ds_configs", "slurm", "train.py", "setup.py", "pyproject.toml")
TEXTS = ("README.md", "LICENSE")
WITHOUT_NETWORK = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, in which nothing has been built before."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*SOURCES, *TEXTS):
        source, target = ROOT / name, folder / "source" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    (folder / "source/slurm/site.sh").write_text("# of a site")
    run(sys.executable, "-m", "pip", "wheel", *WITHOUT_NETWORK, "--wheel-dir", folder, folder / "source")
    (built,) = folder.glob("*.whl")
    return built


def run(*command: object, **options: object) -> str:
    """What a command prints; it has to succeed."""
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, f"{command}: {result.stdout}\n{result.stderr}"
    return result.stdout


def test_the_wheel_holds_the_two_packages_and_the_project_files(wheel: Path) -> None:
    files = set(zipfile.ZipFile(wheel).namelist())
    assert {file.partition("/")[0] for file in files} == {
        "growclip_ds",
        "growclip_kernels",
        "growclip_ds-0.1.0.dist-info",
    }
    for folder, package in ((ROOT, "growclip_ds"), (ROOT / "kernels", "growclip_kernels")):
        modules = {path.relative_to(folder).as_posix() for path in (folder / package).rglob("*.py")}
        missing = modules - files
        assert not missing  # nor any folder that has been forgotten to be a package
    project = {file.removeprefix("growclip_ds/project/") for file in files if "/project/" in file}
    for pattern in ("configs/**/*.yaml", "ds_configs/*.json", "slurm/*.sh", "train.py"):
        there = {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)} - {"slurm/site.sh"}
        assert there
        assert there <= project
    assert "slurm/site.sh" not in project
    assert "growclip_ds-0.1.0.dist-info/licenses/LICENSE" in files


def test_everything_that_packages_hold_beside_code_is_in_the_wheel(wheel: Path) -> None:
    files = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in ((ROOT, "growclip_ds"), (ROOT / "kernels", "growclip_kernels")):
        data = {
            path.relative_to(folder).as_posix()
            for path in (folder / package).rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }
        assert data <= files


def test_pinned_versions_are_within_the_ranges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line)
    known = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pinned.items()}
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in known, f"requirements.txt pins no {requirement.name}"
        assert requirement.specifier.contains(known[name]), text
    assert known["triton"] == "3.7.1"  # what torch 2.13.0's CUDA build asks for, to the last digit
    assert known["torch"] == "2.13.0"


def test_nothing_is_required_that_is_not_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    modules = {"pyyaml": "yaml", "pillow": "PIL"}
    files = [*(ROOT / "growclip_ds").rglob("*.py"), *(ROOT / "kernels/growclip_kernels").rglob("*.py")]
    imported = set(re.findall(r"^ *(?:import|from) (\w+)", "\n".join(map(Path.read_text, files)), re.MULTILINE))
    required = {Requirement(text).name for text in project["dependencies"]}
    assert {modules.get(name, name) for name in required} <= imported


@pytest.mark.slow
def test_the_commands_work_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """In an environment that has this one's packages, but not the checkout: every command, and a growth step."""
    venv.create(tmp_path / "env", with_pip=False)
    python, growclip = tmp_path / "env/bin/python", tmp_path / "env/bin/growclip"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
    outside = [path for path in sys.path if path.endswith("site-packages")]
    # Not `site-packages` by a .pth file's line, which would read theirs too, and with them the editable install.
    hook = f"import sys; sys.path += {outside!r}"
    (Path(site) / "outside.pth").write_text(hook + "\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", *WITHOUT_NETWORK, wheel)
    environment = os.environ | {"PATH": f"{tmp_path / 'env/bin'}:{os.environ['PATH']}", "PYTHONNOUSERSITE": "1"}
    environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    environment.pop("TRITON_INTERPRET", None)

    def inside(*command: object) -> str:
        return run(*command, env=environment, cwd=folder)

    folder = tmp_path
    inside(growclip, "init", "project")
    folder = tmp_path / "project"
    for module in ("growclip_ds", "growclip_kernels"):
        assert inside(python, "-c", f"import {module}; print({module}.__file__)").startswith(site)
    assert inside(growclip, "--version") == "growclip-ds 0.1.0\n"
    for command in re.findall(r"^    (\w+) ", inside(growclip, "--help"), re.MULTILINE):
        assert inside(growclip, command, "--help").startswith(f"usage: growclip {command}")
    inside(growclip, "data", "scenes", "data/scenes", "--samples", "48", "--subsets", "3", "--size", "32",
           "--eval-samples", "60", "--workers", "1")  # fmt: skip
    inside(growclip, "data", "check", "data/scenes/train/subset_1", "--json")
    launch = [python, "-m", "deepspeed.launcher.runner", "--num_accelerators", "1", "--log_level", "error", "train.py"]
    settings = [
        "epochs.first=1", "data.tokenizer.vocab_size=300", "training.global_batch_size=8", "model.image_size=32",
        "growth.steps=1",
    ]  # fmt: skip
    files = ["--deepspeed_config", "ds_configs/cpu.json", "--config", "configs/demo.yaml", "--output-dir", "runs/demo"]
    inside(*launch, *files, *settings)
    assert "scenes_objects" in inside(growclip, "evaluate", "runs/demo", "--device", "cpu", "--json", "results.json")
    steps = inside(growclip, "steps", "--config", "runs/demo/config.yaml", "--output-dir", "runs/demo")
    assert steps == "1 finished\n"
    assert "growth step 1" in inside(growclip, "inspect", "runs/demo").lower()
    hardware = ["--hardware", "configs/hardware/h200.yaml", "--utilisation", "0.3"]
    assert "Cheapest path" in inside(growclip, "plan", "--config", "runs/demo/config.yaml", *hardware)
    assert "report.html" in inside(growclip, "report", "runs/demo", "--output", "report")
    inside(growclip, "export", "runs/demo", "exported")
    load = "import growclip_ds; from transformers import AutoModel; print(type(AutoModel.from_pretrained('exported')))"
    assert "GrowCLIPModel" in inside(python, "-c", load)
    watched = inside(growclip, "watch", "--config", "configs/demo.yaml", "--output-dir", "runs/demo", "--dry-run")
    assert "growth step 2" in watched
