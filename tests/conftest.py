"""Fixtures that any test may use."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before DeepSpeed is imported: the tests run on the CPU
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several ranks share the machine
os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is: its kernels too run on the CPU here
if os.environ["TRITON_INTERPRET"] == "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is: the interpreter is for tensors on the CPU

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.group import Groups

if TYPE_CHECKING:  # imported where it is needed: it takes as long as many tests
    from growclip_ds.run.folder import RunFolder

for name in ("no_proxy", "NO_PROXY"):  # the servers of the tests are on this machine
    os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))

# Tests of whole runs, of programs, and of many sizes, beside those that take a group of ranks: `make test-quick` leaves
# them out.
WHOLE = (
    "benchmarks", "browser", "costs", "docs/test_commands.py",
    "docs/test_extending.py", "evaluation/test_command.py", "faults", "hub",
    "kernels/contrastive/test_triton_path.py", "kernels/packed_attention/test_triton_path.py",
    "kernels/test_launches.py", "kernels/test_resources.py",
    "slurm", "test_packaging.py", "test_train.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        place = item.path.relative_to(Path(__file__).parent)
        in_whole = any(place.is_relative_to(name) for name in WHOLE)
        if in_whole or "group" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.whole)
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(3600))  # instead of pyproject.toml's


@pytest.fixture(scope="session")
def group() -> Iterator[Groups]:
    """`group(2).run(function, *args)` runs a function on 2 ranks and returns their results."""
    groups = Groups()
    yield groups
    groups.close()


@pytest.fixture(scope="session")
def finished_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, configuration and DeepSpeed files of `finished_run`; leave them as they are."""
    from tests.pipeline_runs import write_data

    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def finished_run(finished_data: Path, group: Groups, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of two growth steps on two ranks, for many tests: read it, or go on with a copy."""
    from growclip_ds.run.folder import RunFolder
    from tests.pipeline_runs import grow

    folder = tmp_path_factory.mktemp("runs") / "a run"
    group(2).run(grow, finished_data, folder)
    return RunFolder(folder)
