"""The losses' kernels against whole matrices in float64; what is left unwritten is NaN."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from growclip_kernels.contrastive import contrastive_loss, plan, sigmoid_loss, torch_path, triton_path
from growclip_kernels.contrastive.function import _path
from tests.kernels.contrastive.cases import (
    ROUNDING,
    adversarial,
    assert_rounded,
    identical,
    in_float64,
    inputs,
    large,
    opposite,
    random,
    sigmoid_reference,
    softmax_reference,
)
from tests.kernels.device import DEVICE, on_device, runs_kernels

pytestmark = runs_kernels

ROWS = [random, large, identical, opposite, adversarial]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EDGES = [1, 2, 63, 127, 128, 129, 257]


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Kernels, and NaN in what is allocated for them."""
    monkeypatch.setenv("GROWCLIP_KERNELS", "triton")
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: new_empty(*args, **kwargs).fill_(torch.nan))


def softmax(*given: Tensor) -> None:
    assert_rounded(contrastive_loss, softmax_reference, on_device(*given))


def sigmoid(*given: Tensor) -> None:
    assert_rounded(sigmoid_loss, sigmoid_reference, on_device(*given))


@pytest.mark.parametrize("n", EDGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_around_the_edges_of_tiles(n, dtype):
    softmax(*inputs(random(n, 64), 14.3, dtype=dtype))
    sigmoid(*inputs(random(n, 64), 10.0, -10.0, dtype))


@pytest.mark.parametrize("d", [64, 80, 208, 512, 1008, 1024])
@pytest.mark.parametrize("dtype", DTYPES)
def test_widths(d, dtype):
    softmax(*inputs(random(140, d), 14.3, dtype=dtype))
    sigmoid(*inputs(random(140, d), 10.0, -10.0, dtype))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("scale", [1.0, 100.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hard_rows(rows, scale, dtype):
    softmax(*inputs(rows(135, 64), scale, dtype=dtype))
    sigmoid(*inputs(rows(135, 64), scale, -5.0, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0, 1000.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [64, 208])
def test_all_together(rows, scale, dtype, d):
    for n in (1, 17, 129, 385):
        softmax(*inputs(rows(n, d), scale, dtype=dtype))
        sigmoid(*inputs(rows(n, d), scale, -10.0, dtype))


@pytest.mark.parametrize("tile", [plan.Tile(16, 32, 64, 4, 1), plan.Tile(32, 16, 32, 4, 1)], ids=["16x32", "32x16"])
def test_tiles_that_are_not_square(monkeypatch, tile):
    monkeypatch.setattr(plan, "tile", lambda *chosen: tile)
    softmax(*inputs(random(75, 64), 14.3, dtype=torch.float32))
    sigmoid(*inputs(random(75, 64), 14.3, -10.0, dtype=torch.float32))


def test_several_blocks_of_rows_and_columns(monkeypatch):
    monkeypatch.setattr(plan, "LARGEST", 128)
    monkeypatch.setattr(plan, "LONGEST", 256)
    softmax(*inputs(adversarial(300, 64), 100.0, dtype=torch.float32))
    sigmoid(*inputs(adversarial(300, 64), 100.0, -5.0, dtype=torch.float32))


def parts(path, images: Tensor, texts: Tensor, offset: int, **design: str) -> list[Tensor]:
    """Everything that a path computes of a rank's part, one result after another."""
    factor, bias = torch.tensor(60.0, device=DEVICE), torch.tensor(-10.0, device=DEVICE)
    row_lse, column_lse, diagonal = path.log_sum_exp(images, texts, factor, offset, **design)
    _, columns_of_all, _ = torch_path.log_sum_exp(texts, texts, factor, 0)  # an upper bound, for want of other ranks
    column_lse_of_all = torch.logaddexp(column_lse, columns_of_all)
    gradients = path.gradient(images, texts, factor, row_lse, column_lse_of_all, offset, **design)
    sigmoids = path.sigmoid(images, texts, factor, bias, offset, True, **design)
    value = path.sigmoid(images, texts, factor, bias, offset, False, **design)
    return [row_lse, column_lse, diagonal, *gradients, *sigmoids, value[0], *value[3:]]


@pytest.mark.parametrize("design", ["fused", "chunked"])
@pytest.mark.parametrize(("n_local", "offset"), [(0, 5), (1, 299), (130, 0), (70, 200), (129, 171)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_part_of_a_rank_in_either_design(n_local, offset, design, dtype):
    images, texts = on_device(*(value.to(dtype) for value in random(300, 80)))
    images = images[offset : offset + n_local]
    results = parts(triton_path, images, texts, offset, design=design), parts(torch_path, images, texts, offset)
    for ours, theirs in zip(*results, strict=True):
        assert ours.shape == theirs.shape
        if theirs.isinf().any():  # the columns of no picture
            assert torch.equal(ours, theirs)
            continue
        rounding = 1e-5 + (ROUNDING[dtype] if ours.dim() == 2 else 0)  # others are of scores and G before it is rounded
        assert (ours - theirs).norm() <= rounding * theirs.norm()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("n", [1, 129, 200])
def test_hard_rows_in_the_chunked_design(rows, n):
    images, texts, scale = (value.detach() for value in inputs(rows(n, 64), 100.0, dtype=torch.float32))
    ours = triton_path.log_sum_exp(*on_device(images, texts, scale.reshape(())), 0, design="chunked")
    exact = torch_path.log_sum_exp(images.double(), texts.double(), scale.reshape(()).double(), 0)
    largest = (scale * images @ texts.T).abs().max().item()
    for our, their in zip(ours, exact, strict=True):
        torch.testing.assert_close(our.cpu().double(), their, atol=5e-7 * (1 + largest), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradient_of_pairs_that_fit_is_rounded_after_its_subtraction(dtype):
    images, _ = random(129, 64)
    given = on_device(*inputs((images, images), 10.0, dtype=dtype))  # exp(S - log-sum-exp) of pairs is 0.99
    exact = in_float64(given)
    ours = torch.autograd.grad(contrastive_loss(*given), given)
    theirs = torch.autograd.grad(softmax_reference(*exact), exact)
    for our, their in zip(ours, theirs, strict=True):
        assert (our.cpu().double() - their).norm() <= ROUNDING[dtype] * their.norm()


def test_fp16_gradient_of_many_captions_is_normal_numbers():
    """As of a batch of a million, from which log-sum-exps are taken: G is about 1e-6, of which fp16 keeps 4 bits."""
    images, texts = on_device(*(value.to(torch.float16) for value in random(200, 64)))
    factor, lse = torch.tensor(1.0, device=DEVICE), torch.full((200,), 14.0, device=DEVICE)
    arguments = images[:64], texts, factor, lse[:64], lse, 0
    ours, theirs = (path.gradient(*arguments)[1][64:] for path in (triton_path, torch_path))  # of no pair
    assert (ours - theirs).norm() <= 5e-4 * theirs.norm()


def test_sigmoid_loss_of_few_likely_pairs_is_not_rounded_away():
    """As at the start of SigLIP's training: log(1 + exp(S)) of S about -14, where fp32's 1 + exp(S) is off by 5%."""
    images, texts = (value.float() for value in random(100, 64))
    values = images, texts, torch.tensor(1.0), torch.tensor(-14.0)
    others = len(texts), True  # no caption is a picture's own
    exact = torch_path.sigmoid(*(value.double() for value in values), *others)
    for ours, theirs in zip(triton_path.sigmoid(*on_device(*values), *others), exact, strict=True):
        assert (ours.cpu().double() - theirs).norm() <= 2e-6 * theirs.norm()


def test_features_that_are_strided_or_begin_anywhere():
    images, texts = on_device(*(value.float() for value in random(40, 64)))
    wider = torch.cat([texts, texts], 1)[:, 64:]
    shifted = torch.cat([images.new_zeros(1), images.flatten()])[1:].view(40, 64)
    scale = torch.tensor([0.0, 20.0], device=DEVICE)[1:]  # as parameters are views of a flat buffer
    assert torch.equal(contrastive_loss(shifted, wider, scale), contrastive_loss(images, texts, scale.clone()))


@pytest.mark.parametrize(
    ("d", "dtype", "path"),
    [
        (64, torch.bfloat16, triton_path),
        (1024, torch.float32, triton_path),
        (48, torch.float32, torch_path),
        (72, torch.float32, torch_path),
        (1040, torch.float32, torch_path),
        (64, torch.float64, torch_path),
    ],
)
def test_kernels_are_for_what_they_are_made_for(d, dtype, path):
    assert _path(torch.zeros(2, d, dtype=dtype, device=DEVICE)) is path
