"""Fixtures of the tests that need a Slurm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, missing_programs, two_nodes


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Slurm of two nodes, for all tests."""
    if missing := missing_programs():
        pytest.skip(f"Slurm is not installed (no {', '.join(missing)}): see .ci/run")
    with two_nodes() as cluster:
        cluster.environment["OMP_NUM_THREADS"] = "1"  # two ranks share the machine
        yield cluster
