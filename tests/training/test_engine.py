"""Engines: what is refused, steps that are skipped, evaluation in between, and memory over rebuilds."""

from __future__ import annotations

import ctypes
import datetime
import gc
import itertools
import weakref
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from growclip_ds.architecture import Architecture
from growclip_ds.distributed import broadcast_object
from growclip_ds.growth.supernet_encoder import SupernetEncoder
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.model.packed import pack
from growclip_ds.optim import Lamb
from growclip_ds.training import engine as engine_module
from growclip_ds.training.engine import Engine
from growclip_ds.training.iteration import train_iteration
from tests.fed_gradients import (
    SHAPES,
    Scenario,
    State,
    build,
    collect,
    initial_weights,
    learning_rate,
    rank0,
    relative_error,
    working_copies,
)
from tests.group import Groups
from tests.precisions import LOW_PRECISIONS, needs_fp16

OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
OFFLOAD_WEIGHTS = {"offload_param": {"device": "cpu"}}


def refusals() -> list[str]:
    engine = build(Scenario(2))
    weights = initial_weights()
    wrong: list[dict[str, Tensor]] = [
        weights | {"layers.9.weight": torch.zeros(2)},
        weights | {"layers.0.bias": torch.zeros(8)},
        {name: tensor for name, tensor in weights.items() if name != "layers.1.bias"},
    ]
    messages = []
    for tensors in wrong:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            engine.load_masters(tensors.items())
        messages.append(str(caught.value))
    with pytest.raises(ValueError, match="parameters that the model does not have") as caught:
        engine.step(0.1, {"layers.9.weight": (2,)})
    messages.append(str(caught.value))
    engine.destroy()
    return messages


def test_what_does_not_fit_is_refused_by_name(group: Groups) -> None:
    for messages in group(2).run(refusals):
        unknown, shape, missing, subnet = messages
        assert "'layers.9.weight'" in unknown
        assert "'layers.0.bias' has shape (7,), not (8,)" in shape
        assert "layers.1.bias" in missing
        assert "layers.9.weight" in subnet


def limits_of_waiting(stage: int) -> set[datetime.timedelta]:
    engine = build(Scenario(stage))
    groups = {shard.group for shard in engine.optimizer.shards} - {dist.group.WORLD}
    engine.destroy()
    return {group._get_backend(torch.device("cpu")).options._timeout for group in groups}


@pytest.mark.parametrize(("stage", "hours"), [(1, {24}), (2, {24}), (3, set())])
def test_ranks_wait_as_long_for_each_other_in_deepspeeds_group(group: Groups, stage: int, hours: set[int]) -> None:
    """Which it makes, for stages 1 and 2, with the limit that torch has for a backend: with NCCL 10 minutes."""
    limits = {datetime.timedelta(hours=number) for number in hours}
    assert group(2).run(limits_of_waiting, stage) == [limits] * 2


def skip_and_go_on(scenario: Scenario, bad: float) -> tuple[Any, ...]:
    """A step whose gradients are not finite on the last rank, between two good ones."""
    engine = build(scenario)
    states, skipped, norms = [collect(engine)], [], []
    for iteration in range(3):
        fed = scenario.gradients(iteration, dist.get_rank())
        if iteration == 1 and dist.get_rank() == dist.get_world_size() - 1:
            fed["layers.2.weight"][3, 2] = bad
        engine.backward(engine(fed))
        engine.step(learning_rate(iteration), scenario.active(iteration))
        states.append(collect(engine))
        skipped.append(engine.skipped)
        norms.append(engine.gradient_norm)
    engine.destroy()
    return states, skipped, norms


def skip_all(scenarios: list[Scenario]) -> list[tuple[Any, ...]]:
    return [skip_and_go_on(s, bad) for s in scenarios for bad in (float("nan"), float("inf"))]


def test_gradients_that_are_not_finite_change_nothing(group: Groups) -> None:
    scenarios = [Scenario(stage, dtype=dtype) for stage in (1, 2, 3) for dtype in ("fp32", *LOW_PRECISIONS)]
    scenarios += [Scenario(2, dtype="bf16", zero=OFFLOAD), Scenario(3, zero=OFFLOAD)]
    summed_in_fp32 = {"data_types": {"grad_accum_dtype": "fp32"}}
    for stage, dtype in itertools.product((1, 2, 3), LOW_PRECISIONS):
        scenarios.append(Scenario(stage, dtype=dtype, zero=OFFLOAD, config=summed_in_fp32))
    for rank, results in enumerate(group(2).run(skip_all, scenarios)):
        for scenario, (states, skipped, norms) in zip([s for s in scenarios for _ in "ab"], results, strict=True):
            assert skipped == [False, True, False], scenario
            assert not np.isfinite(norms[1])
            assert np.isfinite(norms[2])
            assert states[1].steps == states[2].steps == dict.fromkeys(SHAPES, 1)
            assert states[3].steps == dict.fromkeys(SHAPES, 2)
            if rank == 0:
                for part in ("weights", "exp_avg", "exp_avg_sq"):
                    first, after, last = (getattr(state, part) for state in states[1:])
                    assert all(torch.equal(first[n], after[n]) for n in SHAPES), scenario
                    assert all(t.isfinite().all() for t in last.values()), scenario
                    assert not any(torch.equal(after[n], last[n]) for n in SHAPES if n != "logit_scale")


def search_loss_scale(stages: list[int]) -> list[tuple[list[bool], list[float], list[float], float, float]]:
    """Gradients that fit into fp16 but not times its loss scale of 256, three times, and in fp32 what is left of them.

    Gives, by stage, what was skipped, gradient norms, the loss scale before each step and after the last one, the fp32
    norm, and how far the weights are from those of fp32.
    """
    scaling = {"fp16": {"enabled": True, "initial_scale_power": 8, "hysteresis": 1}}
    found = []
    for stage in stages:
        fed = Scenario(stage, dtype="fp16").gradients(0, dist.get_rank())
        fed["layers.2.weight"][3, 2] = 320
        states, skipped, norms, scales = [], [], [], []
        for scenario, times in ((Scenario(stage, dtype="fp16", config=scaling), 3), (Scenario(stage), 2)):
            engine = build(scenario)
            for _ in range(times):
                engine.backward(engine(fed))
                engine.step(learning_rate(0))
                skipped.append(engine.skipped)
                norms.append(engine.gradient_norm)
                if engine.loss_scale_before is not None:
                    scales.append(engine.loss_scale_before["cur_scale"])
            scales += [] if engine.loss_scale is None else [engine.loss_scale["cur_scale"]]
            states.append(collect(engine))
            engine.destroy()
        in_fp16, in_fp32 = states
        error = relative_error(in_fp16.weights, in_fp32.weights) if dist.get_rank() == 0 else 0.0
        found.append((skipped[:3], norms[:3], scales, norms[3], error))
    return found


def raise_loss_scale(stages: list[int]) -> list[tuple[list[float], list[float], float]]:
    """The same gradients five times while the loss scale of fp16 doubles in the third and the fifth.

    Gives, by stage, the scale before each step, gradient norms, and the error of the first moment, which is known.
    """
    scaling = {"fp16": {"enabled": True, "initial_scale_power": 4, "loss_scale_window": 2, "hysteresis": 1}}
    found = []
    for stage in stages:
        scenario = Scenario(stage, "adamw", dtype="fp16", config=scaling)
        engine = build(scenario)
        scales, norms = [], []
        for iteration in range(5):
            engine.backward(engine(scenario.gradients(0, dist.get_rank())))
            engine.step(learning_rate(iteration))
            scales.append(engine.loss_scale_before["cur_scale"])
            norms.append(engine.gradient_norm)
            if iteration == 0:
                first = collect(engine).exp_avg
        last, error = collect(engine).exp_avg, 0.0
        if dist.get_rank() == 0:
            # Five times the same gradient: the moment is (1 - 0.9⁵) of it, and (1 - 0.9) after the first.
            error = relative_error(last, {name: moment * (1 - 0.9**5) / 0.1 for name, moment in first.items()})
        found.append((scales, norms, error))
        engine.destroy()
    return found


@needs_fp16
def test_a_loss_scale_that_rises_leaves_the_gradients_as_they_are(group: Groups) -> None:
    for results in group(2).run(raise_loss_scale, [1, 2, 3]):
        for scales, norms, error in results:
            assert scales == [16, 16, 16, 32, 32]
            assert norms == pytest.approx([norms[0]] * 5, rel=1e-3)
            assert error < 1e-3


@needs_fp16
def test_a_loss_scale_too_large_costs_an_update_and_falls(group: Groups) -> None:
    for results in group(2).run(search_loss_scale, [1, 2, 3]):
        for skipped, norms, scales, expected, error in results:
            assert skipped == [True, False, False]
            assert scales == [256, 128, 128, 128]
            assert norms[1:] == pytest.approx([expected, expected], rel=1e-5)  # without the scale
            assert error < 1e-5


def add_up(scenario: Scenario) -> list[tuple[State, float]]:
    """Gradients in two calls against one call with their sum; in the second iteration some layers have none."""
    results = []
    for calls in (2, 1):
        engine = build(scenario)
        for iteration in range(2):
            first, second = (scenario.gradients(10 * iteration + call, dist.get_rank()) for call in range(2))
            if iteration == 1:
                first, second = ({n: g for n, g in fed.items() if "layers.2" not in n} for fed in (first, second))
            if calls == 2:
                engine.backward(engine(first), final=False)
                engine.backward(engine(second))
            else:
                engine.backward(engine({name: g + first[name] for name, g in second.items()}))
            engine.step(learning_rate(iteration))
        results.append((collect(engine), engine.gradient_norm))
        engine.destroy()
    return results


def add_up_all(scenarios: list[Scenario]) -> list[list[tuple[State, float]]]:
    return [add_up(scenario) for scenario in scenarios]


def test_gradients_of_several_calls_add_up(group: Groups) -> None:
    scenarios = [Scenario(stage) for stage in (1, 2, 3)] + [Scenario(2, zero=OFFLOAD), Scenario(3, zero=OFFLOAD)]
    for scenario, results in zip(scenarios, group(2).run(add_up_all, scenarios)[0], strict=True):
        (two, norm_of_two), (one, norm_of_one) = results
        assert norm_of_two == pytest.approx(norm_of_one, rel=1e-6), scenario
        assert relative_error(two.weights, one.weights) < 1e-6, scenario
        assert relative_error(two.exp_avg, one.exp_avg) < 1e-6, scenario


def update_in_parts(scenario: Scenario, *parts: int) -> State:
    """The state after updates by several engines, one after the other, each given the state that the last one left."""
    state, iterations = None, itertools.count()
    for updates in parts:
        engine = build(scenario)
        if state is not None:
            engine.load_masters(state.weights.items())
            engine.load_moments("exp_avg", state.exp_avg.items())
            engine.load_moments("exp_avg_sq", state.exp_avg_sq.items())
            engine.optimizer.steps.update(state.steps)
        norms = []
        for iteration in itertools.islice(iterations, updates):
            engine.backward(engine(scenario.gradients(iteration, dist.get_rank())))
            engine.step(learning_rate(iteration), scenario.active(iteration))
            norms.append(engine.gradient_norm)
        state = broadcast_object(collect(engine))
        state.gradient_norms, state.working = norms[-2:], working_copies(engine)
        engine.destroy()
    return state


def go_on_all(scenarios: list[Scenario]) -> list[tuple[State, State]]:
    return [(update_in_parts(scenario, 4), update_in_parts(scenario, 2, 2)) for scenario in scenarios]


def test_another_engine_goes_on_with_the_same_bits(group: Groups) -> None:
    summed_in_fp32 = {"data_types": {"grad_accum_dtype": "fp32"}}
    scenarios = [
        Scenario(1, "adamw", subnets=True),
        Scenario(1, dtype="bf16", subnets=True),
        Scenario(2, "adamw", dtype="bf16", subnets=True, config=summed_in_fp32),
        Scenario(2, dtype="bf16", subnets=True, clipping=1.0, zero=OFFLOAD),
        Scenario(3, subnets=True, zero=OFFLOAD),
        Scenario(3, dtype="bf16", subnets=True, zero=OFFLOAD | OFFLOAD_WEIGHTS, config=summed_in_fp32),
        Scenario(3, dtype="bf16", subnets=True, zero={"sub_group_size": 150, "stage3_param_persistence_threshold": 0}),
    ]
    for rank, results in enumerate(group(2).run(go_on_all, scenarios)):
        for scenario, (alone, resumed) in zip(scenarios, results, strict=True):
            where = (rank, scenario)
            assert resumed.steps == alone.steps, where
            assert len(set(alone.steps.values())) > 1, where  # subnets leave tensors out
            assert resumed.gradient_norms == alone.gradient_norms, where
            for part in ("weights", "exp_avg", "exp_avg_sq", "working"):
                ours, theirs = getattr(alone, part), getattr(resumed, part)
                assert ours.keys() == theirs.keys() == SHAPES.keys(), where
                assert all(torch.equal(ours[name], theirs[name]) for name in SHAPES), (part, *where)


SUPERNET = Architecture(1, 2, 2, 2, 2, 1)
SIZES = {"vocab_size": 64, "context_length": 16, "image_size": 32, "embed_dim": 32}
CAPTIONS = [[1, 2, 63], [5, 6, 7, 63], [8, 63]]


def clip_engine(stage: int, **zero: Any) -> Engine:
    config = {
        "train_micro_batch_size_per_gpu": 3,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0, **zero},
    }
    engine = Engine(
        lambda: GrowCLIP(SUPERNET, **SIZES, initialise=False), lambda named: Lamb([p for _, p in named]), config
    )
    torch.manual_seed(0)
    model = GrowCLIP(SUPERNET, **SIZES)
    engine.load_masters((name, p.detach()) for name, p in model.named_parameters())
    return engine


def train_clip(engine: Engine, iterations: int) -> None:
    for iteration in range(iterations):
        images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(iteration))
        train_iteration(engine, [(images, pack(CAPTIONS))], 0.01, Architecture(0, 1, 1, 1, 1, 0))


class Noted(dict):
    """Keeps what was ever put into it."""

    def __init__(self) -> None:
        self.ever: list[int] = []

    def __setitem__(self, key: Any, parameter: Tensor) -> None:
        self.ever.append(parameter.numel())
        super().__setitem__(key, parameter)


def reduced_outside_of_buckets(stage: int, overlap: bool) -> tuple[list[int], dict[str, Tensor]]:
    """Sizes of the gradients that ZeRO reduces where they lie, and the weights after three iterations."""
    engine = clip_engine(stage, reduce_bucket_size=100, overlap_comm=overlap, reduce_scatter=stage == 2)
    noted = engine._zero.extra_large_param_to_reduce = Noted()
    train_clip(engine, 3)
    weights = working_copies(engine)
    engine.destroy()
    return noted.ever, weights


@pytest.mark.parametrize("stage", [1, 2])
def test_no_gradient_is_freed_while_it_is_reduced(group: Groups, stage: int) -> None:
    """DeepSpeed frees those that do not fit into a bucket, where overlap_comm reduces them on another stream."""
    for (alone, expected), (overlapped, weights) in zip(
        *(group(2).run(reduced_outside_of_buckets, stage, overlap) for overlap in (False, True)), strict=True
    ):
        assert max(alone) > 100
        assert overlapped == []
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())


def evaluate_in_between(stage: int) -> bool:
    """Whether features are those of the same weights in a model of its own, and training goes on as if nothing was."""
    candidates = [Architecture(0, 1, 1, 1, 1, 0), Architecture(1, 2, 1, 1, 2, 1), SUPERNET]
    pixels = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    finals = []
    for evaluates in (True, False):
        engine = clip_engine(stage)
        train_clip(engine, 2)
        if evaluates:
            encoder = SupernetEncoder(engine.module, candidates)
            found = encoder.images(pixels) + encoder.texts(pack(CAPTIONS))
            model = GrowCLIP(SUPERNET, **SIZES, initialise=False)
            model.load_tensors(working_copies(engine))
            encoder = SupernetEncoder(model, candidates)
            for features, expected in zip(found, encoder.images(pixels) + encoder.texts(pack(CAPTIONS)), strict=True):
                torch.testing.assert_close(features, expected)
        train_clip(engine, 2)
        finals.append(working_copies(engine))
        engine.destroy()
    return all(torch.equal(tensor, finals[1][name]) for name, tensor in finals[0].items())


@pytest.mark.parametrize("stage", [2, 3])
def test_evaluation_in_between_changes_nothing(group: Groups, stage: int) -> None:
    assert group(2).run(evaluate_in_between, stage) == [True, True]


@pytest.mark.parametrize(("device", "threads"), [("cpu", []), ("cuda", [mock.call(5)])])
def test_an_offloaded_update_uses_the_ranks_processors(
    device: str, threads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROWCLIP_CPUS_PER_RANK", "5")
    shard = mock.Mock(flat=torch.zeros(1), device=torch.device(device))
    with mock.patch.object(torch, "set_num_threads") as called:
        engine_module._use_processors([shard])
    assert called.mock_calls == threads


def left_when_memory_is_returned() -> list[bool]:
    """Whether the module was still there, each time that the device's allocator was to return free memory."""
    engine, left = build(Scenario(3)), []
    module = weakref.ref(engine.module)
    with mock.patch.object(get_accelerator(), "empty_cache", side_effect=lambda: left.append(module() is not None)):
        engine.destroy()
    return left


def test_a_destroyed_engine_returns_its_device_memory(group: Groups) -> None:
    """Torch would keep it for the engine's own streams: the next engine's, NCCL and libraries could not have it."""
    assert group(2).run(left_when_memory_is_returned) == [[False], [False]]


class Held(NamedTuple):
    """What a process holds; `device_bytes` in the storages of tensors, which is all that the CPU as a device has."""

    tensors: int
    storages: int
    device_bytes: int
    files: int
    threads: int
    groups: int


def rebuild(stage: int, times: int) -> tuple[list[float], set[Held], bool]:
    """Resident memory in MiB after each of several engines, what was held then, and whether torch is itself again."""
    memory, held, linear = [], set(), F.linear
    for _ in range(times):
        engine = clip_engine(stage)
        train_clip(engine, 3)  # from the second iteration on, stage 3 follows the order of the first
        for _name, _tensor in engine.masters(rank0):
            pass
        engine.destroy()
        del engine, _tensor
        # What the allocator keeps comes and goes with how the tests before this one left it.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20)
        tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
        storages = {storage._cdata: storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
        files, threads = (len(list(Path("/proc/self", kind).iterdir())) for kind in ("fd", "task"))
        groups = len(dist.distributed_c10d._world.pg_map)
        held.add(Held(len(tensors), len(storages), sum(storages.values()), files, threads, groups))
        del tensors
    return memory, held, F.linear is linear


# DeepSpeed has one optimizer for stages 1 and 2.
@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 2, 3])
def test_ten_engines_leave_nothing_behind(group: Groups, stage: int) -> None:
    """Invariant 6."""
    for memory, held, torch_is_itself in group(2).run(rebuild, stage, 10):
        assert len(held) == 1
        assert torch_is_itself
        # An engine takes some 20 MiB; a tenth of it left behind each time would be a slope of 2 MiB. The
        # allocator takes and returns some 6 MiB at any time: the slope is the median of those between every two engines
        # (Theil and Sen).
        slopes = [(memory[j] - memory[i]) / (j - i) for i, j in itertools.combinations(range(2, len(memory)), 2)]
        assert np.median(slopes) < 1.2, memory
