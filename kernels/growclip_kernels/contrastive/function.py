"""Losses over all pairs of the global batch, without storing the matrix of logits.

A rank computes the rows of its own images: scores S = scale · I Tᵀ of local images with all captions, a block at a
time. Softmax: one pass gives the log-sum-exp of rows and of columns (the latter combined across ranks); the backward
pass recomputes each block once and uses it for both directions, 8 · n_local · n · d operations in all. Sigmoid: the
gradient needs no sum over a row, so the forward pass computes it, 6 · n_local · n · d in all. Memory is O(n · d).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from growclip_kernels.contrastive import torch_path
from growclip_kernels.contrastive.ranks import Ranks
from growclip_kernels.dispatch import uses_triton

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    group: dist.ProcessGroup | None = None,
    counts: Sequence[int] | None = None,
) -> Tensor:
    """The contrastive loss of the global batch (the paper's Eq. 3 and 4, with CLIP's temperature).

    Every rank gets the same value. The gradients of a rank's features are those of the global loss; the gradient of
    `logit_scale` is a partial one, that of the rank's own images. So for every parameter the gradient is the *sum* over
    ranks: where gradients are averaged, as by DDP, multiply the loss by the number of ranks.

    Args:
        image_features: (n_local, d), L2-normalised; n_local may differ between ranks and be 0.
        text_features: (n_local, d), L2-normalised; row i is the caption of image i.
        logit_scale: one element, the factor that multiplies the similarities.
        group: the ranks that share the global batch; the default group if None and one is initialised.
        counts: n_local of every rank of the group. If None, several ranks exchange them, which makes the host wait
            for the device.

    Returns:
        () in fp32, or float64 for float64 features; everything is accumulated in that type.

    Raises:
        ValueError: shapes, types, devices or counts do not match, or no rank has a sample.
    """
    _check(image_features, text_features, logit_scale=logit_scale)
    with torch.autocast(image_features.device.type, enabled=False):  # autocast would round fp32 intermediates
        return _SoftmaxLoss.apply(image_features, text_features, logit_scale, group, counts)


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """The sigmoid loss of the global batch (SigLIP, Zhai et al. 2023, Eq. 1).

    -1/n Σᵢⱼ log σ(zᵢⱼ (scale · cosᵢⱼ + bias)) over all n · n pairs, zᵢⱼ = 1 for i = j and -1 otherwise. On several
    ranks, the value and the gradients are as for `contrastive_loss`, the bias's gradient like the scale's.

    Args:
        image_features: (n_local, d), L2-normalised; n_local may differ between ranks and be 0.
        text_features: (n_local, d), L2-normalised; row i is the caption of image i.
        logit_scale: one element, the factor that multiplies the similarities.
        logit_bias: one element, added to the scaled similarities.
        group: the ranks that share the global batch; the default group if None and one is initialised.

    Returns:
        () in fp32, or float64 for float64 features.

    Raises:
        ValueError: shapes, types or devices do not match, or no rank has a sample.
    """
    _check(image_features, text_features, logit_scale=logit_scale, logit_bias=logit_bias)
    inputs = image_features, text_features, logit_scale, logit_bias
    differentiate = torch.is_grad_enabled() and any(value.requires_grad for value in inputs)
    with torch.autocast(image_features.device.type, enabled=False):
        return _SigmoidLoss.apply(*inputs, group, differentiate)


class _SoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        scale: Tensor,
        group: dist.ProcessGroup | None,
        counts: Sequence[int] | None,
    ) -> Tensor:
        ranks, factor = _ranks(images, group, counts), _accumulated(scale, images)
        all_texts = ranks.gather(texts)
        row_lse, column_lse, diagonal = _path(images).log_sum_exp(images, all_texts, factor, ranks.offset)
        column_lse = ranks.combine_lse(column_lse)
        own = column_lse[ranks.offset : ranks.offset + ranks.local]
        ctx.save_for_backward(images, all_texts, scale, row_lse, column_lse)
        ctx.ranks = ranks
        return ranks.sum(((row_lse + own) / 2 - diagonal).sum()) / ranks.total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        images, all_texts, scale, row_lse, column_lse = ctx.saved_tensors
        ranks: Ranks = ctx.ranks
        factor = _accumulated(scale, images)
        with torch.autocast(images.device.type, enabled=False):  # the caller's autocast may be on again here
            d_images, d_texts, d_factor = _path(images).gradient(
                images, all_texts, factor, row_lse, column_lse, ranks.offset
            )
            step = grad_loss / ranks.total
            return (
                d_images.mul_(step).to(images.dtype),
                ranks.sum_scatter(d_texts).mul_(step).to(images.dtype),
                (d_factor * step).to(scale.dtype).reshape(scale.shape),
                None,
                None,
            )


class _SigmoidLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        scale: Tensor,
        bias: Tensor,
        group: dist.ProcessGroup | None,
        differentiate: bool,
    ) -> Tensor:
        ranks = _ranks(images, group)
        factor, shift = _accumulated(scale, images), _accumulated(bias, images)
        loss, d_images, d_texts, d_factor, d_shift = _path(images).sigmoid(
            images, ranks.gather(texts), factor, shift, ranks.offset, differentiate
        )
        if differentiate:
            ctx.save_for_backward(scale, bias, d_images, ranks.sum_scatter(d_texts), d_factor, d_shift)
            ctx.dtype, ctx.total = images.dtype, ranks.total
        return ranks.sum(loss) / ranks.total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        scale, bias, d_images, d_texts, d_factor, d_shift = ctx.saved_tensors
        step = grad_loss / ctx.total
        return (
            (d_images * step).to(ctx.dtype),
            (d_texts * step).to(ctx.dtype),
            (d_factor * step).to(scale.dtype).reshape(scale.shape),
            (d_shift * step).to(bias.dtype).reshape(bias.shape),
            None,
            None,
        )


def _check(images: Tensor, texts: Tensor, **scalars: Tensor) -> None:
    if images.dim() != 2 or images.shape != texts.shape:
        raise ValueError(f"features must both be (n, d), not {tuple(images.shape)} and {tuple(texts.shape)}")
    if images.dtype != texts.dtype or images.dtype not in DTYPES:
        raise ValueError(
            f"features must be of one type, bfloat16, float16, float32 or float64, not {images.dtype} and "
            f"{texts.dtype}: convert one to the other's"
        )
    if images.device != texts.device:
        raise ValueError(f"features are on {images.device} and {texts.device}: move them to one device")
    for name, scalar in scalars.items():
        if scalar.numel() != 1:
            raise ValueError(f"{name} must have one element, not {tuple(scalar.shape)}")
        if not scalar.is_floating_point():
            raise ValueError(f"{name} must be a floating-point number, not {scalar.dtype}")
        if scalar.device != images.device:
            raise ValueError(f"{name} is on {scalar.device}, the features on {images.device}: move it there")


def _ranks(images: Tensor, group: dist.ProcessGroup | None, counts: Sequence[int] | None = None) -> Ranks:
    ranks = Ranks(images.shape[0], images.device, group, counts)
    if ranks.total == 0:
        raise ValueError("no sample on any rank: the loss of an empty batch is not defined")
    return ranks


def _accumulated(scalar: Tensor, features: Tensor) -> Tensor:
    """The scalar as () in the accumulation type. It stays on its device, since reading it would synchronise."""
    return scalar.to(torch.promote_types(features.dtype, torch.float32)).reshape(())


def _path(images: Tensor) -> ModuleType:
    """The implementation of a rank's part: the Triton kernels where they support the features, else PyTorch."""
    d = images.shape[1]
    if uses_triton(images.device) and images.dtype != torch.float64 and d % 16 == 0 and 64 <= d <= 1024:
        from growclip_kernels.contrastive import triton_path  # not every machine has Triton

        return triton_path
    return torch_path
