"""Weights into and out of flat shards."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.fed_gradients import SHAPES, Scenario, build, rank0, working_copies
from tests.group import Groups

OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
SCENARIOS = [
    *(Scenario(stage, dtype=dtype) for stage in (1, 2, 3) for dtype in ("fp32", "bf16")),
    Scenario(1, dtype="bf16", config={"data_types": {"grad_accum_dtype": "fp32"}}),
    Scenario(2, zero={"round_robin_gradients": True}),
    Scenario(2, zero={"parameter_alignment": True}),
    Scenario(3, zero={"sub_group_size": 100, "stage3_param_persistence_threshold": 0}),
    Scenario(2, dtype="bf16", zero=OFFLOAD),
    Scenario(3, dtype="bf16", zero=OFFLOAD | {"offload_param": {"device": "cpu"}}),
]


def any_bits() -> dict[str, Tensor]:
    """Tensors of all kinds of numbers: of full precision, tiny, and zero with a sign."""
    generator = torch.Generator().manual_seed(3)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    tensors["layers.2.weight"][3:5] = -0.0
    tensors["layers.2.weight"][7:9] = 1e-42
    return tensors


def bits(tensors: dict[str, Tensor | None]) -> dict[str, list[int] | None]:
    return {name: None if t is None else t.view(torch.int32).flatten().tolist() for name, t in tensors.items()}


def layout(scenario: Scenario) -> tuple[int, list[Any]]:
    engine = build(scenario)
    shards = [(shard.flat.numel(), shard.rank, shard.segments) for shard in engine.optimizer.shards]
    engine.destroy()
    return dist.get_rank(), shards


def owner(name: str) -> int:
    return random.Random(name).randrange(dist.get_world_size())


def round_trip(scenario: Scenario) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """What comes back (by owner, and all on rank 0), and the working copies, after other weights were there."""
    engine = build(scenario)
    engine.load_masters(reversed(any_bits().items()))
    by_owner, on_rank0 = dict(engine.masters(owner)), dict(engine.masters(rank0))
    working = working_copies(engine)
    engine.destroy()
    return bits(by_owner), working, bits(on_rank0)


def on_all(function: Any, scenarios: list[Scenario]) -> list[Any]:
    return [function(scenario) for scenario in scenarios]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_masters_come_back_to_the_bit(group: Groups, ranks: int) -> None:
    """At every stage and number of ranks the same bits, so also from one to another."""
    expected = bits(any_bits())
    results = group(ranks).run(on_all, round_trip, SCENARIOS)
    for index, scenario in enumerate(SCENARIOS):
        merged: dict[str, Any] = {}
        for rank in range(ranks):
            by_owner, working, on_rank0 = results[rank][index]
            held = {name: value for name, value in by_owner.items() if value is not None}
            assert not merged.keys() & held.keys()
            merged |= held
            dtype = torch.bfloat16 if scenario.dtype == "bf16" else torch.float32
            for name, tensor in any_bits().items():
                assert torch.equal(working[name], tensor.to(dtype)), (scenario, name)
            assert on_rank0 == (expected if rank == 0 else dict.fromkeys(SHAPES)), scenario
        assert merged == expected, scenario


def test_every_element_lies_in_one_place(group: Groups) -> None:
    results = group(2).run(on_all, layout, SCENARIOS)
    for index, scenario in enumerate(SCENARIOS):
        (_, shards0), (_, shards1) = results[0][index], results[1][index]
        assert [s[2] for s in shards0] == [s[2] for s in shards1]  # every rank knows every rank's pieces
        segments = [segment for _, _, in_shard in shards0 for segment in in_shard]
        assert {segment.name: segment.shape for segment in segments} == SHAPES, scenario
        for segment in segments:
            covered = [i for p in segment.pieces for i in range(p.param_offset, p.param_offset + p.numel)]
            assert sorted(covered) == list(range(torch.Size(segment.shape).numel())), (scenario, segment)
        for numel, rank, in_shard in [*shards0, *shards1]:
            pieces = [segment.pieces[rank] for segment in in_shard]
            used = [i for p in pieces for i in range(p.flat_offset, p.flat_offset + p.numel)]
            assert len(used) == len(set(used)), scenario
            assert 0 <= min(used) <= max(used) < numel, scenario
