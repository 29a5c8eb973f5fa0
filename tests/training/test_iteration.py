"""Invariant 3: however a global batch is divided, an iteration is that of one process with all of it."""

from __future__ import annotations

import functools
import itertools
import math
import random
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from growclip_ds.architecture import Architecture
from growclip_ds.data.pictures import normalise
from growclip_ds.growth.space import GrowthSpace
from growclip_ds.model.checkpointing import checkpoint_activations
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.model.initial import MAX_LOGIT_SCALE
from growclip_ds.model.packed import pack
from growclip_ds.optim import Lamb
from growclip_ds.training.engine import Engine
from growclip_ds.training.iteration import MicroBatch, Outcome, train_iteration
from tests.fed_gradients import leading, rank0
from tests.group import Groups
from tests.precisions import needs_fp16

SPACE = GrowthSpace(Architecture(1, 1, 1, 1, 1, 0), conv_step=1, block_step=1, head_step=1)
SIZES = {"vocab_size": 64, "context_length": 16, "image_size": 32, "embed_dim": 32}
BATCH = 12
SEED = 30  # of batches without a gradient so near zero that rounding decides its sign, and so LAMB's first steps
ITERATIONS = 5
LEARNING_RATE = 0.005


def model() -> GrowCLIP:
    """A model as if trained a while: norms and biases have taken values of their own."""
    torch.manual_seed(0)
    net = GrowCLIP(SPACE.supernet, **SIZES)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() == 1 and name != "logit_scale":
                parameter.add_(torch.randn(parameter.shape), alpha=0.5)
    return net


def global_batch(iteration: int) -> tuple[Tensor, list[list[int]]]:
    generator = torch.Generator().manual_seed(SEED + iteration)
    lengths = torch.randint(2, 16, (BATCH,), generator=generator).tolist()
    captions = [[*torch.randint(63, (length,), generator=generator).tolist(), 63] for length in lengths]
    return torch.randn(BATCH, 3, 32, 32, generator=generator), captions


def sampled(iteration: int, subnets: bool) -> Architecture | None:
    return SPACE.sample(torch.Generator().manual_seed(SEED + iteration)) if subnets else None


@dataclass(frozen=True)
class Division:
    """A way to train.

    Attributes:
        stage: of ZeRO.
        sizes: of the micro-batches of each rank.
        subnets: whether every iteration samples one.
        zero: more of DeepSpeed's zero_optimization section.
        dtype: "fp32", "bf16" or "fp16".
        checkpointing: of activations.
    """

    stage: int
    sizes: tuple[tuple[int, ...], ...]
    subnets: bool = False
    zero: dict[str, Any] = field(default_factory=dict)
    dtype: str = "fp32"
    checkpointing: str = "off"

    def micro_batches(self, iteration: int, rank: int) -> list[MicroBatch]:
        images, captions = global_batch(iteration)
        start = sum(map(sum, self.sizes[:rank]))
        batches = []
        for size in self.sizes[rank]:
            batches.append((images[start : start + size], pack(captions[start : start + size])))
            start += size
        return batches


Trained = tuple[list[Outcome], dict[str, Tensor]]


def train(division: Division) -> Trained:
    """The outcome of every iteration, and the weights on rank 0."""
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": len(division.sizes[0]),
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": division.stage, **division.zero},
        **({} if division.dtype == "fp32" else {division.dtype: {"enabled": True}}),
    }
    engine = Engine(
        lambda: checkpoint_activations(GrowCLIP(SPACE.supernet, **SIZES, initialise=False), division.checkpointing),
        lambda names: Lamb([p for _, p in names], upper_bounds={"logit_scale": MAX_LOGIT_SCALE}),
        config,
    )
    engine.load_masters((name, p.detach()) for name, p in model().named_parameters())
    outcomes = []
    for iteration in range(ITERATIONS):
        batches = [(i.to(engine.dtype), t) for i, t in division.micro_batches(iteration, dist.get_rank())]
        outcomes.append(train_iteration(engine, batches, LEARNING_RATE, sampled(iteration, division.subnets)))
    weights = dict(engine.masters(rank0))
    engine.destroy()
    return outcomes, weights


def reference(subnets: bool) -> tuple[list[Outcome], dict[str, Tensor]]:
    """One process, the whole batch, the loss by its definition, LAMB by the book, all in float64."""
    net = model().double()
    moments = {name: [torch.zeros_like(p), torch.zeros_like(p), 0] for name, p in net.named_parameters()}
    outcomes = []
    for iteration in range(ITERATIONS):
        images, captions = global_batch(iteration)
        architecture = sampled(iteration, subnets)
        image_features, text_features, scale = net(images.double(), pack(captions), architecture)
        similarity = scale * image_features @ text_features.T
        labels = torch.arange(BATCH)
        loss = (F.cross_entropy(similarity, labels) + F.cross_entropy(similarity.T, labels)) / 2
        net.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters() if p.grad is not None))
        outcomes.append(Outcome(loss.item(), norm, scale.item(), False))
        shapes = (architecture or SPACE.supernet).parameter_shapes(net.sizes)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if name in shapes:
                    moments[name][2] += 1
                    m, v, w, g = (
                        leading(t, shapes[name]) for t in (*moments[name][:2], parameter.data, parameter.grad)
                    )
                    lamb_step(w, g, m, v, moments[name][2])
            net.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
    return outcomes, {name: parameter.detach() for name, parameter in net.named_parameters()}


def lamb_step(w: Tensor, g: Tensor, m: Tensor, v: Tensor, step: int) -> None:
    m.copy_(0.9 * m + 0.1 * g)
    v.copy_(0.999 * v + 0.001 * g**2)
    update = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-6)
    if w.dim() > 1:
        update = update + 1e-4 * w
        update = update * (w.norm() / update.norm())
    w -= LEARNING_RATE * update


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative L2 error by tensor. Key biases are left out: their exact gradient is 0, LAMB normalises the noise."""
    assert found.keys() == expected.keys()
    result = {}
    for name, tensor in expected.items():
        tensors = [found[name].double(), tensor.double()]
        if name.endswith("qkv.bias"):
            tensors = [t.view(-1, 3, 64)[:, [0, 2]] for t in tensors]
        result[name] = float((tensors[0] - tensors[1]).norm() / tensors[1].norm())
    return result


def moved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """How far training has moved them."""
    return {name: weights[name].double() - start.detach() for name, start in model().named_parameters()}


OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
DIVISIONS = {
    1: [
        Division(1, ((12,),)),
        Division(2, ((5, 7),)),
        Division(3, ((5, 0, 3, 4),), subnets=True),
    ],
    2: [
        Division(1, ((5, 0, 2, 1), (3, 1, 0, 0))),
        Division(2, ((5, 4), (3, 0)), subnets=True, zero={"overlap_comm": True}),
        Division(2, ((5, 4), (3, 0)), subnets=True, zero=OFFLOAD),
        Division(3, ((12,), (0,))),
        Division(3, ((5, 4), (3, 0)), subnets=True, checkpointing="on"),
        Division(3, ((0, 4), (3, 5)), subnets=True, zero=OFFLOAD | {"offload_param": {"device": "cpu"}}),
    ],
    4: [
        Division(1, ((7,), (5,), (0,), (0,)), subnets=True),
        Division(2, ((3, 0), (2, 2), (1, 1), (1, 2))),
        Division(3, ((2, 0), (2, 2), (2, 2), (1, 1)), subnets=True),
    ],
}


def full_matrix(ranks: int) -> list[Division]:
    """Every stage with 1, 2 and 4 micro-batches of all sizes."""
    divisions = []
    for stage, micro_batches, subnets in itertools.product((1, 2, 3), (1, 2, 4), (False, True)):
        draw = random.Random(micro_batches + 10 * ranks)
        cuts = sorted(draw.randint(0, BATCH) for _ in range(ranks * micro_batches - 1))
        sizes = [end - start for start, end in itertools.pairwise([0, *cuts, BATCH])]
        of_ranks = [sizes[i : i + micro_batches] for i in range(0, len(sizes), micro_batches)]
        divisions.append(Division(stage, tuple(map(tuple, of_ranks)), subnets))
    return divisions


def train_all(divisions: list[Division]) -> list[Trained]:
    return [train(division) for division in divisions]


@pytest.fixture(scope="module")
def trained(group: Groups) -> Callable[[int], list[Trained]]:
    """What each of `DIVISIONS` gives on so many ranks."""
    return functools.cache(lambda ranks: group(ranks).run(train_all, DIVISIONS[ranks])[0])


def check(divisions: list[Division], results: list[Trained]) -> None:
    expected = {subnets: reference(subnets) for subnets in {division.subnets for division in divisions}}
    for division, (outcomes, weights) in zip(divisions, results, strict=True):
        expected_outcomes, expected_weights = expected[division.subnets]
        for outcome, expected_outcome in zip(outcomes, expected_outcomes, strict=True):
            assert outcome == pytest.approx(expected_outcome, rel=2e-5), division
        worst = max(errors(weights, expected_weights).items(), key=lambda item: item[1])
        assert worst[1] < 1e-5, (division, worst)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_same_weights_however_divided(trained: Callable[[int], list[Trained]], ranks: int) -> None:
    check(DIVISIONS[ranks], trained(ranks))


def test_runs_are_reproducible_to_the_bit(group: Groups, trained: Callable[[int], list[Trained]]) -> None:
    """Invariant 4: the same seeds, the same bits."""
    chosen = [0, 1, 4]  # of each stage, and with subnets
    again = group(2).run(train_all, [DIVISIONS[2][i] for i in chosen])[0]
    for (outcomes, weights), (outcomes_again, weights_again) in zip(
        [trained(2)[i] for i in chosen], again, strict=True
    ):
        assert outcomes == outcomes_again
        assert all(torch.equal(tensor, weights_again[name]) for name, tensor in weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_full_matrix(group: Groups, ranks: int) -> None:
    divisions = full_matrix(ranks)
    check(divisions, group(ranks).run(train_all, divisions, limit=60 + 20 * len(divisions))[0])


def check_low_precision(group: Groups, divisions: list[Division], dtype: torch.dtype) -> None:
    """Losses as in fp32 to the precision of the type, with fp32 masters that move by less than it resolves."""
    outcomes, weights = reference(subnets=False)
    for division, (found_outcomes, found) in zip(divisions, group(2).run(train_all, divisions)[0], strict=True):
        norms, found_norms = ([o.gradient_norm for o in some] for some in (outcomes, found_outcomes))
        assert [o.loss for o in found_outcomes] == pytest.approx([o.loss for o in outcomes], rel=5e-3), division
        assert found_norms == pytest.approx(norms, rel=0.1), division
        assert not any(o.skipped for o in found_outcomes)
        # Where rounding decides a gradient's sign, Adam's update of a vector goes the other way: a share p of such
        # elements is an error of 2 √p of how far it moves. 0.3 is 2 %; weights that stay where they are have 1.
        wrong = {name: error for name, error in errors(moved(found), moved(weights)).items() if not error < 0.3}
        assert not wrong, (division, wrong)
        assert any(not torch.equal(tensor, tensor.to(dtype).float()) for tensor in found.values())


@pytest.mark.parametrize("stages", [pytest.param((1,), marks=pytest.mark.slow), (2, 3)])
def test_bf16_follows(group: Groups, stages: tuple[int, ...]) -> None:
    check_low_precision(group, [Division(stage, ((4, 4), (4, 0)), dtype="bf16") for stage in stages], torch.bfloat16)


@pytest.mark.slow
@needs_fp16
def test_fp16_follows(group: Groups) -> None:
    check_low_precision(group, [Division(stage, ((4, 4), (4, 0)), dtype="fp16") for stage in (1, 2, 3)], torch.float16)


def train_on_bytes(normalised: bool) -> tuple[Outcome, int]:
    """Of an iteration with three micro-batches of bytes, and the most of them that were normalised at a time."""
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 3,
        "zero_optimization": {"stage": 1},
    }
    engine = Engine(model, lambda names: Lamb([p for _, p in names]), config)
    engine.load_masters((name, p.detach()) for name, p in model().named_parameters())
    pixels = torch.randint(256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(SEED))
    captions = global_batch(0)[1]
    made: list[weakref.ref[Tensor]] = []
    most = 0

    def watched(images: Tensor, dtype: torch.dtype) -> Tensor:
        nonlocal most
        result = normalise(images, dtype)
        made.append(weakref.ref(result))
        most = max(most, sum(reference() is not None for reference in made))
        return result

    batches = []
    for start in range(0, BATCH, 4):
        part = pixels[start : start + 4]
        batches.append((normalise(part) if normalised else part, pack(captions[start : start + 4])))
    with mock.patch("growclip_ds.training.iteration.normalise", watched):
        outcome = train_iteration(engine, batches, LEARNING_RATE)
    engine.destroy()
    return outcome, most


def test_bytes_are_normalised_one_micro_batch_at_a_time(group: Groups) -> None:
    (expected, none), (found, most) = (group(1).run(train_on_bytes, normalised)[0] for normalised in (True, False))
    assert found == expected
    assert (none, most) == (0, 1)
