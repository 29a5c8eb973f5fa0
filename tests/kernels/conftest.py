"""Kernels need torch and Triton alone, and so do their tests, but for the one that trains with them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

GENERATIONS = (8, 9)

collect_ignore = [] if find_spec("deepspeed") and find_spec("fairscale") else ["test_in_training.py"]


@pytest.fixture(scope="session")
def compiling(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes that compile for GPUs instead of interpreting, each program once.

    Not into the user's cache: programs made from another checkout name other paths of the source.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return environment | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton-cache"))}


@pytest.fixture(scope="session", autouse=True)
def compilers(request: pytest.FixtureRequest, compiling: dict[str, str]) -> Iterator[dict[int, subprocess.Popen[str]]]:
    """`launches.py` for each GPU generation, begun with the first test of a kernel.

    It compiles for a minute and more: beside the tests that Triton interprets, which leave a core idle.
    """
    script = Path(__file__).with_name("launches.py")
    wanted = any(item.path.name == "test_launches.py" for item in request.session.items)
    processes = {
        generation: subprocess.Popen(
            ["nice", sys.executable, script, str(generation)],
            env=compiling | {"GROWCLIP_KERNELS": "triton"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for generation in GENERATIONS
        if wanted
    }
    yield processes
    for process in processes.values():
        process.kill()
        process.communicate()
