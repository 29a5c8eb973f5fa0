"""What dispatch launches is what the table of resources says, the same programs and no others; and how many of each."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import pytest

Outcome = Callable[[int], dict[str, Any]]


@pytest.fixture(scope="module")
def outcome(compilers: Mapping[int, subprocess.Popen[str]]) -> Outcome:
    """What `launches.py` says for a generation."""

    @functools.cache
    def outcome(generation: int) -> dict[str, Any]:
        output, errors = compilers[generation].communicate()
        assert compilers[generation].returncode == 0, errors
        return json.loads(output)

    return outcome


@pytest.mark.parametrize("generation", [8, 9])
def test_programs_launched_are_those_listed(outcome: Outcome, generation: int) -> None:
    found = outcome(generation)
    assert found["listed"] == found["launched"] == found["both"] > 25


@pytest.mark.parametrize("generation", [8, 9])
def test_each_group_has_launches_of_its_own(outcome: Outcome, generation: int) -> None:
    """Two pictures and four captions of three heads: pictures take one launch, captions one a size that they may have.

    None has programs for the other group's sequences, which would only return.
    """
    programs = [2 * 3, 4 * 3, 4 * 3, 4 * 3]
    expected = [[f"{way}_on_chip", count] for way in ("forward", "backward") for count in programs]
    assert outcome(generation)["of groups"] == expected
