"""The part of the losses that is a rank's own, in PyTorch: any device and any floating type."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from growclip_kernels.contrastive.plan import blocks

BLOCK = 2048


def log_sum_exp(images: Tensor, texts: Tensor, factor: Tensor, offset: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp of the scores S = factor · I Tᵀ of local pictures with all captions.

    Args:
        images: I (n_local, d).
        texts: T (n, d), the captions of all ranks.
        factor: () in fp32, or float64 for float64 features, in which everything is computed and returned.
        offset: index of the first picture's own caption.

    Returns:
        of each row (n_local,), of each column (n,) over the local pictures, and the scores of pairs (n_local,).
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
    """The gradient of Σᵢ (row_lseᵢ + column_lseᵢ) / 2 - Sᵢᵢ over the global batch: what goes through local scores.

    Args:
        row_lse: (n_local,), of all captions.
        column_lse: (n,), of the pictures of all ranks.

    Returns:
        in the pictures (n_local, d), in the captions of all ranks (n, d), in the factor (); in the factor's type.
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
    """Σ softplus(∓(S + bias)), - for pairs, over the local pictures and all captions, and its gradient.

    Args:
        bias: (), like `factor`.
        differentiate: whether gradients are wanted; those in features are empty if not.

    Returns:
        the sum (); its gradients in the pictures (n_local, d), in all captions (n, d), in the factor and in the bias.
    """
    d_images, d_texts = (_zeros(features if differentiate else features[:0], factor) for features in (images, texts))
    loss, d_factor, d_bias = torch.zeros_like(factor), torch.zeros_like(factor), torch.zeros_like(factor)
    for rows, columns in blocks(images.shape[0], texts.shape[0], (BLOCK, BLOCK)):
        product = _products(images[rows], texts[columns], factor.dtype)
        score = factor * product + bias
        grad = score.sigmoid()
        own = _diagonal(score, rows, columns, offset)
        _diagonal(grad, rows, columns, offset).copy_(-(-own).sigmoid())  # σ - 1 without its cancellation
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
    """A view of a block's scores of pairs: empty where their diagonal does not cross it."""
    return block.diagonal(offset + rows.start - columns.start)
