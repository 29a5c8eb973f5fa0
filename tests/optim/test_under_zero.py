"""LAMB and AdamW under ZeRO against a plain float64 optimiser that is fed the same gradients."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from growclip_kernels.optimizer import torch_path
from tests.fed_gradients import BOUND, SHAPES, Scenario, State, leading, reference, relative_error, train
from tests.group import Groups
from tests.precisions import LOW_PRECISIONS

PRECISIONS = ["fp32", *LOW_PRECISIONS]
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}

BOTH = [Scenario(stage, o, subnets=s) for stage in (1, 2, 3) for o in ("lamb", "adamw") for s in (False, True)]
LOW_PRECISION = [
    Scenario(stage, optimizer, dtype=dtype, subnets=True)
    for stage in (1, 2, 3)
    for optimizer in ("lamb", "adamw")
    for dtype in PRECISIONS
    if dtype != "fp32"
]
CLIPPED = [
    Scenario(stage, optimizer, dtype=dtype, subnets=True, clipping=1.0)
    for stage in (1, 2, 3)
    for optimizer, dtype in itertools.product(("lamb", "adamw"), PRECISIONS)
    if optimizer == "lamb" or dtype == "fp32"
]
SETTINGS = [
    Scenario(1, dtype="bf16", subnets=True, config={"data_types": {"grad_accum_dtype": "fp32"}}),  # BF16_Optimizer
    Scenario(2, dtype="bf16", subnets=True, config={"data_types": {"grad_accum_dtype": "fp32"}}),
    Scenario(2, subnets=True, zero={"round_robin_gradients": True, "reduce_bucket_size": 64}),
    Scenario(1, subnets=True, zero={"overlap_comm": True}),
    Scenario(2, subnets=True, zero={"parameter_alignment": True, "reduce_bucket_size": 64, "overlap_comm": True}),
    Scenario(3, subnets=True, zero={"sub_group_size": 150, "stage3_param_persistence_threshold": 0}),
]
OFFLOADED = [
    Scenario(1, subnets=True, zero=OFFLOAD),
    Scenario(2, "adamw", subnets=True, zero=OFFLOAD),
    Scenario(2, subnets=True, clipping=1.0, zero=OFFLOAD),
    Scenario(3, "adamw", subnets=True, zero=OFFLOAD),
    Scenario(3, subnets=True, clipping=1.0, zero=OFFLOAD | {"offload_param": {"device": "cpu"}}),
    *(Scenario(stage, dtype=dtype, subnets=True, zero=OFFLOAD) for stage in (1, 2, 3) for dtype in PRECISIONS[1:]),
]


def train_all(scenarios: list[Scenario]) -> list[list[State]]:
    return [train(scenario) for scenario in scenarios]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_equals_the_plain_optimiser(group: Groups, ranks: int) -> None:
    check(group, ranks, [replace(scenario, iterations=20) for scenario in BOTH])


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "scenarios", [LOW_PRECISION, CLIPPED, SETTINGS, OFFLOADED], ids=["low", "clipped", "more", "offloaded"]
)
def test_equals_the_plain_optimiser_however_deepspeed_is_set(
    group: Groups, ranks: int, scenarios: list[Scenario]
) -> None:
    check(group, ranks, scenarios)


def train_with_kernels(scenarios: list[Scenario]) -> list[list[State]]:
    without = dict.fromkeys(("adamw", "lamb_direction", "lamb_apply"))
    with patch.dict(os.environ, GROWCLIP_KERNELS="triton"), patch.multiple(torch_path, **without):
        return train_all(scenarios)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_equals_the_plain_optimiser_with_triton(group: Groups, ranks: int) -> None:
    check(group, ranks, [*(s for s in BOTH if s.subnets), SETTINGS[-1], CLIPPED[0]], train_with_kernels)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_equals_the_plain_optimiser_for_longer(group: Groups, ranks: int) -> None:
    scenarios = (*LOW_PRECISION, *CLIPPED, *SETTINGS, *OFFLOADED)
    check(group, ranks, [replace(scenario, iterations=20) for scenario in scenarios])


def check(
    group: Groups,
    ranks: int,
    scenarios: list[Scenario],
    train_them: Callable[[list[Scenario]], list[list[State]]] = train_all,
) -> None:
    results = group(ranks).run(train_them, scenarios, limit=60 + 10 * len(scenarios))[0]
    for scenario, states in zip(scenarios, results, strict=True):
        found, expected = states[-1], reference(scenario, ranks)
        assert found.steps == expected.steps, scenario
        assert found.gradient_norms == pytest.approx(expected.gradient_norms, rel=1e-5), scenario
        for part in ("weights", "exp_avg", "exp_avg_sq"):
            error = relative_error(getattr(found, part), getattr(expected, part))
            assert error < 1e-5, (scenario, part)
        for name, master in found.weights.items():
            assert torch.equal(found.working[name], master.to(found.working[name].dtype)), (scenario, name)
        assert found.weights["logit_scale"].item() == pytest.approx(BOUND, abs=1e-6)
        check_untouched(scenario, states)


def check_untouched(scenario: Scenario, states: list[State]) -> None:
    """Invariant 2: an iteration changes what its subnet uses and leaves all else as it was, to the bit."""
    for iteration, (before, after) in enumerate(itertools.pairwise(states[: scenario.observed + 1])):
        active = scenario.active(iteration)
        for name, shape in SHAPES.items():
            used = shape if active is None else active.get(name)
            assert (after.steps[name] == before.steps[name]) == (used is None)
            for part in ("weights", "exp_avg", "exp_avg_sq"):
                old, new = (getattr(state, part)[name].clone() for state in (before, after))
                if used is not None:
                    if name != "logit_scale":
                        assert not torch.equal(leading(old, used), leading(new, used)), (scenario, iteration, name)
                    leading(old, used).zero_()
                    leading(new, used).zero_()
                assert torch.equal(old.view(torch.int32), new.view(torch.int32)), (scenario, iteration, name)
