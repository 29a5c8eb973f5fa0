"""The losses inside torch.compile, activation checkpointing and fake tensors, on either path."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from growclip_kernels.contrastive import contrastive_loss, sigmoid_loss, triton_path
from tests.kernels.contrastive.cases import inputs, random
from tests.kernels.device import DEVICE, on_device, runs_kernels

LOSSES = [pytest.param((contrastive_loss, None), id="softmax"), pytest.param((sigmoid_loss, -10.0), id="sigmoid")]


@pytest.fixture(params=["torch", pytest.param("triton", marks=runs_kernels)], autouse=True)
def kernels(request, monkeypatch):
    monkeypatch.setenv("GROWCLIP_KERNELS", request.param)
    torch.compiler.reset()


def value_and_gradients(function, given):
    value = function(*given)
    return value.detach(), *torch.autograd.grad(value, given)


@pytest.mark.parametrize("loss", LOSSES)
def test_in_one_graph(loss):
    function, bias = loss
    given = on_device(*inputs(random(40, 64), 20.0, bias, torch.float32))

    def around(images, texts, scale, *others):
        return 2 * function(images.sin(), texts.cos(), scale.exp().log(), *others)

    compiled = torch.compile(around, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(value_and_gradients(compiled, given), value_and_gradients(around, given))


@pytest.mark.parametrize("loss", LOSSES)
def test_checkpointed(loss):
    function, bias = loss
    given = on_device(*inputs(random(40, 64), 20.0, bias, torch.float32))

    def checkpointed(*values):
        return checkpoint(function, *values, use_reentrant=False)

    torch.testing.assert_close(value_and_gradients(checkpointed, given), value_and_gradients(function, given))


@pytest.mark.parametrize("loss", LOSSES)
def test_fake_tensors(loss):
    function, bias = loss
    with FakeTensorMode():
        images, texts = (torch.zeros(40, 64, device=DEVICE) for _ in range(2))
        scale = torch.ones((), device=DEVICE)
        others = () if bias is None else (torch.zeros((), device=DEVICE),)
        assert function(images.requires_grad_(), texts, scale, *others).shape == ()


@runs_kernels
def test_operators_say_what_they_do():
    images, texts, scale = on_device(*(value.detach().float() for value in inputs(random(40, 64), 20.0)))
    factor = scale.reshape(())
    row_lse, column_lse, _ = triton_path.log_sum_exp(images, texts, factor, 0)
    calls = [
        (triton_path.log_sum_exp, (images, texts, factor, 0)),
        (triton_path.gradient, (images, texts, factor, row_lse, column_lse, 0)),
        (triton_path.sigmoid, (images, texts, factor, -factor, 0, True)),
        (triton_path.sigmoid, (images, texts, factor, -factor, 0, False)),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
