from __future__ import annotations

import pytest
import torch

from growclip_ds import distributed
from growclip_ds.errors import InputError
from tests.group import Groups


def outcome(collective: str, failing: int, error: type[Exception]) -> str:
    """What a rank sees of a function that fails on one rank."""

    def function() -> str:
        if distributed.rank() == failing:
            raise error("no such thing")
        return "well"

    try:
        return getattr(distributed, collective)(function)
    except Exception as caught:
        return f"{type(caught).__name__}: {caught}"


@pytest.mark.parametrize("collective", ["on_main", "on_every_rank"])
def test_what_fails_on_one_rank_ends_all(group: Groups, collective: str) -> None:
    assert group(2).run(outcome, collective, 0, InputError) == ["InputError: no such thing"] * 2
    others = "OtherRankError: rank 0: OSError: no such thing"
    assert group(2).run(outcome, collective, 0, OSError) == ["OSError: no such thing", others]
    assert group(2).run(outcome, collective, 5, OSError) == ["well", "well"]


def test_a_function_that_fails_elsewhere_than_on_rank_0(group: Groups) -> None:
    assert group(2).run(outcome, "on_every_rank", 1, InputError) == ["InputError: no such thing"] * 2
    assert group(2).run(outcome, "on_main", 1, InputError) == ["well", "well"]


def gathered(counts: list[int]) -> torch.Tensor:
    rank = distributed.rank()
    start = sum(counts[:rank])
    return distributed.ragged_all_gather(torch.arange(start, start + counts[rank]).view(-1, 1) * torch.ones(1, 3))


@pytest.mark.parametrize("counts", [[2, 5], [0, 3], [4, 0], [0, 0]])
def test_ragged_all_gather(group: Groups, counts: list[int]) -> None:
    expected = torch.arange(sum(counts)).view(-1, 1) * torch.ones(1, 3)
    for result in group(2).run(gathered, counts):
        assert torch.equal(result, expected)


def test_a_world_of_one() -> None:
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.all_gather_object("a") == ["a"]
    assert distributed.broadcast_object("a") == "a"
    assert distributed.all_reduce_sum(torch.ones(2)).tolist() == [1, 1]
    with pytest.raises(OSError, match="no such"):
        distributed.on_main(lambda: (_ for _ in ()).throw(OSError("no such")))
