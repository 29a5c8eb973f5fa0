"""Fixtures that any test may use."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before DeepSpeed is imported: the tests run on the CPU
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several ranks share the machine
os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is: its kernels too run on the CPU here

from collections.abc import Iterator

import pytest

from tests.group import Groups


@pytest.fixture(scope="session")
def group() -> Iterator[Groups]:
    """`group(2).run(function, *args)` runs a function on 2 ranks and returns their results."""
    groups = Groups()
    yield groups
    groups.close()
