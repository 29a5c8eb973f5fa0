"""A rank's own part of the losses in PyTorch operators, for any device and floating-point type."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from growclip_kernels.contrastive.plan import blocks

BLOCK = 2048


def log_sum_exp(images: Tensor, texts: Tensor, factor: Tensor, offset: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp of the scores S = factor · I Tᵀ of local images with all captions.

    Args:
        images: I (n_local, d).
        texts: T (n, d), the captions of all ranks.
        factor: () in fp32, or float64 for float64 features; the results are computed and returned in its type.
        offset: index of the first image's own caption.

    Returns:
        The log-sum-exp of each row (n_local,), that of each column (n,) over the local images, and the scores of the
        local pairs (n_local,).
    """
    row_lse = factor.new_full((images.shape[0],), -torch.inf)
    column_lse = factor.new_full((texts.shape[0],), -torch.inf)
    for rows, columns in blocks(images.shape[0], texts.shape[0], (BLOCK, BLOCK)):
        score = factor * _products(images[rows], texts[columns], factor.dtype)
        row_lse[rows] = torch.logaddexp(row_lse[rows], score.logsumexp(1))
        column_lse[columns] = torch.logaddexp(column_lse[columns], score.logsumexp(0))
    own = texts[offset : offset + images.shape[0]]
    diagonal = factor * (images.to(factor.dtype) * own.to(factor.dtype)).sum(1)
    return row_lse, column_lse, diagonal


def gradient(
    images: Tensor, texts: Tensor, factor: Tensor, row_lse: Tensor, column_lse: Tensor, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The part of the gradient of Σᵢ (row_lseᵢ + column_lseᵢ) / 2 - Sᵢᵢ over the global batch that local scores carry.

    Args:
        row_lse: (n_local,), log-sum-exp of each local row over all captions.
        column_lse: (n,), log-sum-exp of each column over the images of all ranks.

    Returns:
        The gradients of the images (n_local, d), of the captions of all ranks (n, d) and of the factor (), in the
        factor's type.
    """
    d_images, d_texts, d_factor = _zeros(images, factor), _zeros(texts, factor), torch.zeros_like(factor)
    for rows, columns in blocks(images.shape[0], texts.shape[0], (BLOCK, BLOCK)):
        product = _products(images[rows], texts[columns], factor.dtype)
        score = factor * product
        grad = (score - row_lse[rows, None]).exp_()
        grad += score.sub_(column_lse[columns]).exp_()
        grad /= 2
        _diagonal(grad, rows, columns, offset).sub_(1)
        d_factor += (grad * product).sum()
        d_images[rows] += grad @ texts[columns].to(factor.dtype)
        d_texts[columns] += grad.T @ images[rows].to(factor.dtype)
    return d_images.mul_(factor), d_texts.mul_(factor), d_factor


def sigmoid(
    images: Tensor, texts: Tensor, factor: Tensor, bias: Tensor, offset: int, differentiate: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Σ softplus(∓(S + bias)), - for pairs, over the local images and all captions, and its gradients.

    Args:
        bias: (), in the type of `factor`.
        differentiate: whether the gradients of features are wanted; they are empty if not.

    Returns:
        The sum () and its gradients of the images (n_local, d), of all captions (n, d), of the factor () and of the
        bias ().
    """
    d_images, d_texts = (_zeros(features if differentiate else features[:0], factor) for features in (images, texts))
    loss, d_factor, d_bias = torch.zeros_like(factor), torch.zeros_like(factor), torch.zeros_like(factor)
    for rows, columns in blocks(images.shape[0], texts.shape[0], (BLOCK, BLOCK)):
        product = _products(images[rows], texts[columns], factor.dtype)
        score = factor * product + bias
        grad = score.sigmoid()
        own = _diagonal(score, rows, columns, offset)
        _diagonal(grad, rows, columns, offset).copy_(-(-own).sigmoid())  # σ - 1 without cancellation
        own.neg_()
        loss += F.softplus(score).sum()
        d_factor += (grad * product).sum()
        d_bias += grad.sum()
        if differentiate:
            d_images[rows] += grad @ texts[columns].to(factor.dtype)
            d_texts[columns] += grad.T @ images[rows].to(factor.dtype)
    return loss, d_images.mul_(factor), d_texts.mul_(factor), d_factor, d_bias


def _products(images: Tensor, texts: Tensor, dtype: torch.dtype) -> Tensor:
    return images.to(dtype) @ texts.to(dtype).T


def _zeros(features: Tensor, factor: Tensor) -> Tensor:
    return torch.zeros(features.shape, dtype=factor.dtype, device=features.device)


def _diagonal(block: Tensor, rows: slice, columns: slice, offset: int) -> Tensor:
    """A view of the scores of pairs in a block; empty if their diagonal does not cross it."""
    return block.diagonal(offset + rows.start - columns.start)
