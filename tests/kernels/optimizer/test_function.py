"""Both paths of LAMB and AdamW against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from growclip_kernels.optimizer import (
    Buffers,
    Region,
    Regions,
    Span,
    adamw,
    lamb_apply,
    lamb_direction,
    torch_path,
    triton_path,
    trust_ratios,
)
from growclip_kernels.optimizer.regions import BLOCK
from tests.kernels.device import DEVICE, runs_kernels
from tests.kernels.optimizer.cases import BETAS, DECAY, EPS, LR, REGIONS, SIZE, STEPS, buffers, expected, indices


@pytest.fixture(params=["torch", pytest.param("triton", marks=runs_kernels)], autouse=True)
def path(request, monkeypatch) -> None:
    """The path that computes, and alone; NaN in what is allocated for it."""
    monkeypatch.setenv("GROWCLIP_KERNELS", request.param)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: poisoned(empty(*args, **kwargs)))
    other = {"torch": triton_path, "triton": torch_path}[request.param]
    for name in ("adamw", "lamb_direction", "lamb_apply"):
        monkeypatch.setattr(other, name, not_to_be_called)


def not_to_be_called(*_: object) -> None:
    raise AssertionError("the other path computes")


def poisoned(tensor: Tensor) -> Tensor:
    return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor


def update(optimizer: str, given: Buffers, regions: Regions, steps: list[int]) -> Tensor | None:
    if optimizer == "adamw":
        adamw(given, regions, steps, LR, BETAS, EPS, DECAY)
        return None
    squares = lamb_direction(given, regions, steps, BETAS, EPS, DECAY)
    lamb_apply(given, regions, trust_ratios(squares.clone()), LR)
    return squares


def check(optimizer: str, given: Buffers, regions: Regions, steps: list[int]) -> None:
    """What is updated is right to some roundings; all else, which is NaN, is as it was to the bit."""
    concerned = torch.zeros(given.weight.numel(), dtype=torch.bool)
    for region in regions.regions:
        concerned[indices(region, len(concerned))] = True
    for buffer in given:
        buffer[~concerned.to(DEVICE)] = torch.nan
    after, squares = expected(optimizer, given, regions, steps)
    found = update(optimizer, given, regions, steps)
    if found is not None:
        torch.testing.assert_close(found.cpu(), squares, rtol=1e-6, atol=0)
    for name, buffer, right in zip(Buffers._fields, (buffer.cpu() for buffer in given), after, strict=True):
        assert buffer[~concerned].isnan().all(), name
        if optimizer == "lamb" or name != "gradient":
            torch.testing.assert_close(buffer[concerned].double(), right[concerned], rtol=2e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
def test_regions_of_all_kinds(optimizer):
    check(optimizer, buffers(), Regions(REGIONS), STEPS)


@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
def test_each_region_alone(optimizer):
    for region in REGIONS:
        check(optimizer, buffers(), Regions([region]), [3])


@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
def test_nothing_to_update(optimizer):
    check(optimizer, buffers(10), Regions([]), [])
    check(optimizer, buffers(10), Regions([Region((), True), Region((), False)]), [1, 1])


def test_the_squares_of_many_blocks(monkeypatch):
    """More partial sums than are added at a time."""
    monkeypatch.setattr(triton_path, "SUM_BLOCK", 4)
    size = 11 * BLOCK
    regions = [Region((Span(0, 1, 9 * BLOCK - 7, 9 * BLOCK - 7),), True), Region((Span(9 * BLOCK, 1, 9, 9),), True)]
    check("lamb", buffers(size), Regions(regions), [2, 2])


def test_ranks_that_share_a_tensor_add_up_their_squares():
    """A tensor cut in two, each half with the ratio of both, is the tensor in one piece."""
    whole, halves = buffers(2 * BLOCK + 30), buffers(2 * BLOCK + 30)
    size, cut = whole.weight.numel(), BLOCK + 17
    update("lamb", whole, Regions([Region((Span(0, 1, size, size),), True)]), [4])
    parts = [Buffers(*(b[:cut].clone() for b in halves)), Buffers(*(b[cut:].clone() for b in halves))]
    regions = [Regions([Region((Span(0, 1, len(p.weight), len(p.weight)),), True)]) for p in parts]
    squares = sum(lamb_direction(p, r, [4], BETAS, EPS, DECAY) for p, r in zip(parts, regions, strict=True))
    for part, region in zip(parts, regions, strict=True):
        lamb_apply(part, region, trust_ratios(squares.clone()), LR)
    torch.testing.assert_close(torch.cat([p.weight for p in parts]), whole.weight, rtol=1e-6, atol=1e-7)


def test_a_norm_of_zero_is_a_ratio_of_one():
    given = buffers(40)
    given.weight[:20] = 0
    for buffer in given[1:]:
        buffer[20:] = 0
    before = given.weight.clone()
    regions = Regions([Region((Span(0, 1, 20, 20),), True), Region((Span(20, 1, 20, 20),), True)])
    squares = lamb_direction(given, regions, [1, 1], BETAS, EPS, 0.0)
    assert squares[0, 0] == squares[1, 1] == 0
    ratios = trust_ratios(squares)
    assert ratios.tolist() == [1, 1]
    lamb_apply(given, regions, ratios, LR)
    torch.testing.assert_close(given.weight[:20], -LR * given.gradient[:20])
    assert torch.equal(given.weight[20:], before[20:])


def test_same_bits_every_time():
    runs = []
    for _ in range(2):
        given = buffers()
        squares = update("lamb", given, Regions(REGIONS), STEPS)
        runs.append([squares, *given])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in the interpreter
def test_a_gradient_that_is_not_finite_stays_in_its_own_tensor():
    given, clean = buffers(), buffers()
    given.gradient[3] = torch.inf
    update("lamb", given, Regions(REGIONS), STEPS)
    update("lamb", clean, Regions(REGIONS), STEPS)
    others = torch.ones(SIZE, dtype=torch.bool)
    others[indices(REGIONS[1], SIZE)] = False
    others = others.to(DEVICE)
    assert given.weight[3].isnan()
    assert torch.equal(given.weight[others], clean.weight[others])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient": torch.zeros(9)}, r"gradient must be \(10,\) fp32, not \(9,\)"),
        (
            {"exp_avg": torch.zeros(10, dtype=torch.bfloat16)},
            r"exp_avg must be \(10,\) fp32, not \(10,\) torch.bfloat16",
        ),
        ({"exp_avg_sq": torch.zeros(20)[::2]}, "exp_avg_sq must be dense and on cpu"),
        ({"gradient": torch.zeros(10, device="meta")}, "gradient must be dense and on cpu"),
    ],
)
def test_buffers_that_do_not_match(change, message):
    given = buffers(10, device=torch.device("cpu"))._replace(**change)
    with pytest.raises(ValueError, match=message):
        lamb_direction(given, Regions([]), [], BETAS, EPS, DECAY)


def test_regions_that_do_not_match():
    regions = Regions([Region((Span(4, 2, 3, 4),), True)])
    with pytest.raises(ValueError, match="regions extend to element 11, but the shard has 10"):
        adamw(buffers(10), regions, [1], LR, BETAS, EPS, DECAY)
    with pytest.raises(ValueError, match=r"steps must have one entry per tensor \(1\), not 0"):
        adamw(buffers(11), regions, [], LR, BETAS, EPS, DECAY)
    with pytest.raises(ValueError, match="3000000000 elements of one tensor, more than 2147481600; use more ranks"):
        Regions([Region((Span(0, 1, 3_000_000_000, 3_000_000_000),), True)])


def test_what_is_offloaded_takes_pytorch(monkeypatch):
    """On the CPU of a machine whose GPU was told to take Triton's kernels."""
    monkeypatch.setenv("GROWCLIP_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    taken = []
    monkeypatch.setattr(torch_path, "adamw", lambda *arguments: taken.append(arguments))
    adamw(buffers(10, device=torch.device("cpu")), Regions([]), [], LR, BETAS, EPS, DECAY)
    assert len(taken) == 1
