"""Features that are hard on a loss, and the losses of whole matrices in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.device import INTERPRETED

Inputs = tuple[Tensor, ...]  # image features, text features, scale and, for the sigmoid loss, bias

# Relative error of a result's largest terms: of fp32 products and sums, and of a G rounded to the features' type. A
# GPU's bf16 is allowed what benchmarks/contrastive.py allows it.
ROUNDING = {torch.bfloat16: 4e-3 if INTERPRETED else 2e-2, torch.float16: 5e-4, torch.float32: 1e-6}


def softmax_reference(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    logits = scale * images @ texts.T
    own = torch.arange(len(images))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def sigmoid_reference(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    sign = 2 * torch.eye(len(images), dtype=images.dtype) - 1
    return -F.logsigmoid(sign * (scale * images @ texts.T + bias)).sum() / len(images)


def random(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Of unit length, pairs a little alike."""
    generator = torch.Generator().manual_seed(1000 * n + d)
    images, others = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return F.normalize(images, dim=1), F.normalize(0.3 * images + others, dim=1)


def large(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Of lengths from 1 to 20."""
    images, texts = random(n, d)
    lengths = torch.linspace(1, 20, n, dtype=torch.float64)[:, None]
    return images * lengths, texts * lengths.flip(0)


def identical(n: int, d: int) -> tuple[Tensor, Tensor]:
    images, _ = random(1, d)
    return images.repeat(n, 1), images.repeat(n, 1)


def opposite(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Captions alternate between the pictures' one direction and its opposite."""
    images, _ = identical(n, d)
    return images, images * (1 - 2 * (torch.arange(n) % 2))[:, None]


def adversarial(n: int, d: int) -> tuple[Tensor, Tensor]:
    """At a scale of 100 the best score of some pictures, and of some captions, is over 200 below that of all others."""
    images, texts = random(n, d)
    direction = F.normalize(torch.ones(1, d, dtype=torch.float64), dim=1)
    images, texts = direction + 0.1 * images, direction + 0.1 * texts
    images[1::5] = -2 * direction + 0.1 * images[1::5]
    texts[3::7] = -3 * direction + 0.1 * texts[3::7]
    return images, texts


def inputs(
    features: tuple[Tensor, Tensor], scale: float, bias: float | None = None, dtype: torch.dtype = torch.float64
) -> Inputs:
    """To be differentiated; scale and bias in fp32 or float64."""
    scalar = torch.promote_types(dtype, torch.float32)
    values = [value.to(dtype) for value in features] + [torch.tensor([scale], dtype=scalar)]
    if bias is not None:
        values.append(torch.tensor([bias], dtype=scalar))
    return tuple(value.detach().clone().requires_grad_() for value in values)


def in_float64(given: Inputs) -> Inputs:
    """The same values on the CPU, to be differentiated apart."""
    return tuple(value.detach().cpu().double().requires_grad_() for value in given)


def assert_exact(loss: Callable[..., Tensor], reference: Callable[..., Tensor], given: Inputs) -> None:
    """Value and gradients of a loss of float64 inputs."""
    ours, theirs = loss(*given), reference(*given)
    torch.testing.assert_close(ours, theirs)
    for our, their in zip(*(torch.autograd.grad(3 * value, given) for value in (ours, theirs)), strict=True):
        torch.testing.assert_close(our, their, atol=1e-12, rtol=1e-9)


def cut_off(d: int) -> float:
    """Relative error of a score on a GPU: its tensor cores add up 16 features at a time, and cut sums off to fp32."""
    return 0.0 if INTERPRETED else d / 16 * 2**-23


def assert_rounded(loss: Callable[..., Tensor], reference: Callable[..., Tensor], given: Inputs) -> None:
    """Value and gradients of a loss of lower precision against those of the same rounded inputs in float64.

    A score of S is off by about S · 2⁻²⁴, and its exponential by as much relatively: with S of 1,000 no fp32 loss is
    better. Where a gradient all but vanishes, the error is measured by what it is the difference of: pairs' features.
    """
    exact = in_float64(given)
    images, texts, scale = (value.detach() for value in exact[:3])
    products = images @ texts.T
    largest = (scale * products).abs().max().item()
    cut = cut_off(images.shape[1])
    exponential = (2e-7 + cut) * (5 + largest)
    ours, theirs = loss(*given), reference(*exact)
    assert ours.dtype == torch.float32
    value = theirs.item()
    # Scores that are alike are cut off alike: a sum over them is off relatively by what a score of a few units is.
    assert abs(ours.item() - value) <= (1e-6 + 8 * cut) * (1 + abs(value)) + exponential
    n, d_ours, d_theirs = len(images), torch.autograd.grad(ours, given), torch.autograd.grad(theirs, exact)
    terms = [scale * texts.norm() / n, scale * images.norm() / n, products.abs().max(), torch.ones(())]
    for our, their, term in zip(d_ours, d_theirs, terms, strict=False):
        rounding = ROUNDING[given[0].dtype] if our.dim() == 2 else 1e-6  # scale and bias see G before it is rounded
        rounding += 2**-24 * n**0.5  # terms all alike are rounded alike: the error of their sum grows with their number
        rounding += 8 * cut
        error = (our.cpu().double() - their).norm()
        assert error <= rounding * (their.norm() + term * (our.dim() == 2)) + exponential * term
