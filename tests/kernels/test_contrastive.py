"""The blockwise loss against cross entropy over the whole matrix, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from growclip_kernels import contrastive, contrastive_loss


def whole_matrix(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    logits = scale * images @ texts.T
    own = torch.arange(len(images))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def features(n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * n + d + seed)
    rows = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    images, texts = F.normalize(rows, dim=-1).to(dtype)
    return images.requires_grad_(), texts.requires_grad_()


@pytest.mark.parametrize("block", [7, 2048])
@pytest.mark.parametrize("n", [1, 2, 6, 7, 8, 15, 40])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0, 1000.0])
def test_value_and_gradients(monkeypatch, block, n, scale):
    monkeypatch.setattr(contrastive, "BLOCK", block)
    inputs = *features(n, 16), torch.tensor([scale], dtype=torch.float64, requires_grad=True)
    losses = contrastive_loss(*inputs), whole_matrix(*inputs)
    torch.testing.assert_close(*losses)
    for ours, theirs in zip(*(torch.autograd.grad(3 * loss, inputs) for loss in losses), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


def test_identical_and_opposite_rows(monkeypatch):
    monkeypatch.setattr(contrastive, "BLOCK", 4)
    row = F.normalize(torch.randn(1, 16, dtype=torch.float64), dim=1)
    images = row.repeat(9, 1).requires_grad_()
    texts = torch.cat([row, -row]).repeat(5, 1)[:9].clone().requires_grad_()
    inputs = images, texts, torch.tensor([100.0], dtype=torch.float64, requires_grad=True)
    losses = contrastive_loss(*inputs), whole_matrix(*inputs)
    torch.testing.assert_close(*losses)
    for ours, theirs in zip(*(torch.autograd.grad(loss, inputs) for loss in losses), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_lower_precision_accumulates_in_fp32(dtype, tolerance):
    images, texts = features(33, 64, dtype)
    scale = torch.tensor([50.0], requires_grad=True)
    loss = contrastive_loss(images, texts, scale)
    assert loss.dtype == torch.float32
    exact = [t.detach().double().requires_grad_() for t in (images, texts, scale)]
    expected = whole_matrix(*exact)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)  # of the same rounded features
    gradients = torch.autograd.grad(loss, (images, texts, scale))
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
        assert (ours.double() - theirs).norm() <= tolerance * theirs.norm()


def on_ranks(counts: list[int]) -> list[tuple[float, Tensor, Tensor, Tensor]]:
    """This rank's loss and gradients, of its slice of one global batch."""
    images, texts = features(sum(counts), 16)
    start = sum(counts[: dist.get_rank()])
    own = slice(start, start + counts[dist.get_rank()])
    inputs = (
        images[own].detach().requires_grad_(),
        texts[own].detach().requires_grad_(),
        torch.tensor([30.0], dtype=torch.float64, requires_grad=True),
    )
    loss = contrastive_loss(*inputs)
    return float(loss), *torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("counts", [[5, 5], [3, 9], [0, 6], [6, 0]], ids=str)
def test_ranks_with_unequal_batches(group, counts):
    inputs = *features(sum(counts), 16), torch.tensor([30.0], dtype=torch.float64, requires_grad=True)
    expected = whole_matrix(*inputs)
    gradients = torch.autograd.grad(expected, inputs)
    results = group(2).run(on_ranks, counts)
    assert all(result[0] == pytest.approx(expected.item(), rel=1e-12) for result in results)
    for i in (0, 1):
        torch.testing.assert_close(torch.cat([result[1 + i] for result in results]), gradients[i])
    torch.testing.assert_close(sum(result[3] for result in results), gradients[2])  # the ranks' shares add up


@pytest.mark.parametrize(
    ("images", "texts", "scale", "message"),
    [
        ((3, 16), (4, 16), (1,), "features must both be"),
        ((3, 16, 1), (3, 16, 1), (1,), "features must both be"),
        ((3, 16), (3, 16), (2,), "one element"),
        ((0, 16), (0, 16), (1,), "no sample on any rank"),
    ],
)
def test_wrong_inputs_are_refused(images, texts, scale, message):
    with pytest.raises(ValueError, match=message):
        contrastive_loss(torch.zeros(images), torch.zeros(texts), torch.ones(scale))
