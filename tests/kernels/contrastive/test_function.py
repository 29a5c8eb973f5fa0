"""The losses' PyTorch path against whole matrices in float64, over ranks, and what is refused."""

from __future__ import annotations

import os
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from growclip_kernels.contrastive import contrastive_loss, sigmoid_loss, torch_path
from tests.kernels.contrastive.cases import (
    adversarial,
    assert_exact,
    assert_rounded,
    identical,
    inputs,
    large,
    opposite,
    random,
    sigmoid_reference,
    softmax_reference,
)
from tests.kernels.device import runs_kernels_on_ranks

LOSSES = {"softmax": (contrastive_loss, softmax_reference, None), "sigmoid": (sigmoid_loss, sigmoid_reference, -7.0)}


@pytest.fixture(params=["softmax", "sigmoid"])
def loss(request):
    return LOSSES[request.param]


@pytest.mark.parametrize("block", [7, 2048])
@pytest.mark.parametrize("n", [1, 2, 6, 7, 8, 15, 40])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0, 1000.0])
def test_value_and_gradients(monkeypatch, loss, block, n, scale):
    monkeypatch.setattr(torch_path, "BLOCK", block)
    function, reference, bias = loss
    assert_exact(function, reference, inputs(random(n, 16), scale, bias))


@pytest.mark.parametrize("rows", [large, identical, opposite, adversarial])
def test_hard_rows(monkeypatch, loss, rows):
    monkeypatch.setattr(torch_path, "BLOCK", 4)
    function, reference, bias = loss
    assert_exact(function, reference, inputs(rows(9, 16), 100.0, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision_accumulates_in_fp32(loss, dtype):
    function, reference, bias = loss
    assert_rounded(function, reference, inputs(random(33, 64), 50.0, bias, dtype))


def test_autocast_changes_nothing(loss):
    function, _, bias = loss
    given = inputs(random(33, 64), 50.0, bias, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = function(*given)
        gradients = torch.autograd.grad(value, given)
    expected = function(*given)
    assert torch.equal(value, expected)
    for gradient, right in zip(gradients, torch.autograd.grad(expected, given), strict=True):
        assert torch.equal(gradient, right)


def test_without_gradients(loss):
    function, reference, bias = loss
    given = inputs(random(9, 16), 20.0, bias)
    with torch.no_grad():
        torch.testing.assert_close(function(*given), reference(*given))
    torch.testing.assert_close(function(*(value.detach() for value in given)), reference(*given))


def on_ranks(name: str, counts: list[int], d: int, kernels: str) -> tuple[float, list[Tensor]]:
    """This rank's loss and gradients, of its slice of one global batch."""
    function, _, bias = LOSSES[name]
    dtype = torch.float64 if kernels == "torch" else torch.float32
    images, texts, *scalars = inputs(random(sum(counts), d), 30.0, bias, dtype)
    start = sum(counts[: dist.get_rank()])
    own = slice(start, start + counts[dist.get_rank()])
    given = [value[own].detach().requires_grad_() for value in (images, texts)] + scalars
    before = os.environ.get("GROWCLIP_KERNELS")
    os.environ["GROWCLIP_KERNELS"] = kernels
    try:
        loss = function(*given)
        return float(loss), list(torch.autograd.grad(loss, given))
    finally:
        os.environ.pop("GROWCLIP_KERNELS")
        if before is not None:
            os.environ["GROWCLIP_KERNELS"] = before


@pytest.mark.parametrize("kernels", ["torch", pytest.param("triton", marks=runs_kernels_on_ranks)])
@pytest.mark.parametrize("counts", [[5, 5], [3, 9], [0, 6], [130, 0], [2, 0, 7], [4, 4, 4], [70, 1, 129]], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_ranks_with_unequal_batches(group, name, counts, kernels):
    _, reference, bias = LOSSES[name]
    d = 16 if kernels == "torch" else 64
    dtype = torch.float64 if kernels == "torch" else torch.float32
    given = [value.detach().double().requires_grad_() for value in inputs(random(sum(counts), d), 30.0, bias, dtype)]
    expected = reference(*given)
    gradients = torch.autograd.grad(expected, given)
    losses, parts = zip(*group(len(counts)).run(on_ranks, name, counts, d, kernels), strict=True)
    tolerance = {"atol": 1e-12, "rtol": 1e-9} if kernels == "torch" else {"atol": 2e-6, "rtol": 2e-5}
    assert losses == pytest.approx([expected.item()] * len(counts), rel=tolerance["rtol"])
    of_ranks = list(zip(*parts, strict=True))
    ours = [torch.cat(part).double() for part in of_ranks[:2]] + [sum(part).double() for part in of_ranks[2:]]
    for our, their in zip(ours, gradients, strict=True):  # the ranks' shares of scale and bias add up
        torch.testing.assert_close(our, their, **tolerance)


def with_counts(counts: list[int], stated: list[int]) -> tuple[float, float, int] | str:
    """The loss when ranks have to ask each other, when they are told, and how often they then still read a tensor."""
    images, texts, scale = (value.detach() for value in inputs(random(sum(counts), 16), 30.0, None))
    start = sum(counts[: dist.get_rank()])
    own = slice(start, start + counts[dist.get_rank()])
    try:
        with mock.patch.object(Tensor, "tolist", mock.Mock()) as read:
            told = contrastive_loss(images[own], texts[own], scale, counts=stated)
    except ValueError as error:
        return str(error)
    return float(contrastive_loss(images[own], texts[own], scale)), float(told), read.call_count


def test_ranks_that_are_told_the_counts_need_not_ask(group):
    for asked, told, reads in group(3).run(with_counts, [2, 0, 7], [2, 0, 7]):
        assert asked == told
        assert reads == 0


@pytest.mark.parametrize("stated", [[3, 2], [2], [2, 3, 0]])
def test_counts_that_are_wrong_are_refused(group, stated):
    assert "counts must be of 2 ranks" in group(2).run(with_counts, [2, 3], stated)[1]


def fault_on_ranks() -> str:
    try:
        contrastive_loss(torch.zeros(0, 16), torch.zeros(0, 16), torch.ones(1))
    except ValueError as error:
        return str(error)
    return ""


def test_no_sample_on_any_rank_is_refused_on_all(group):
    assert all("no sample on any rank" in fault for fault in group(2).run(fault_on_ranks))


def call(sigmoid: bool = False, **changed: Tensor) -> Tensor:
    arguments = {
        "image_features": torch.zeros(3, 16),
        "text_features": torch.zeros(3, 16),
        "logit_scale": torch.ones(1),
    }
    if sigmoid:
        arguments["logit_bias"] = torch.zeros(1)
    return (sigmoid_loss if sigmoid else contrastive_loss)(**{**arguments, **changed})


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text_features": torch.zeros(4, 16)}, "features must both be"),
        ({"image_features": torch.zeros(3, 16, 1), "text_features": torch.zeros(3, 16, 1)}, "features must both be"),
        ({"image_features": torch.zeros(0, 16), "text_features": torch.zeros(0, 16)}, "no sample on any rank"),
        ({"text_features": torch.zeros(3, 16, dtype=torch.bfloat16)}, "one type, .* not torch.float32 and torch.bfl"),
        (
            {"image_features": torch.zeros(3, 16).int(), "text_features": torch.zeros(3, 16).int()},
            "features must be of one type, bfloat16",
        ),
        ({"text_features": torch.zeros(3, 16, device="meta")}, "features are on cpu and meta"),
        ({"logit_scale": torch.ones(2)}, "logit_scale must have one element"),
        ({"logit_scale": torch.ones(1).int()}, "logit_scale must be a floating-point number"),
        ({"logit_scale": torch.ones(1, device="meta")}, "logit_scale is on meta, the features on cpu"),
    ],
)
def test_wrong_inputs_are_refused(sigmoid, changed, message):
    with pytest.raises(ValueError, match=message):
        call(sigmoid, **changed)


def test_wrong_bias_is_refused():
    with pytest.raises(ValueError, match="logit_bias must have one element"):
        call(True, logit_bias=torch.ones(2))


def test_adversarial_rows_are_far_below_the_others():
    images, texts = adversarial(20, 64)
    scores = 100 * images @ texts.T
    assert scores.amax(1).min() < scores.max() - 200
    assert scores.amax(0).min() < scores.max() - 200
