"""Symmetric InfoNCE over the global batch without a matrix of all similarities in memory.

A rank holds the rows of its own pictures: blocks of similarities S = scale · I Tᵀ of local pictures with all
captions are made one at a time. One pass gives the log-sum-exp of rows and of columns (the latter combined
across ranks); the backward pass makes each block once more and uses it for both directions, 8 · n_local · n · d
operations in all, with O(n · d) memory.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

BLOCK = 2048


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, group: dist.ProcessGroup | None = None
) -> Tensor:
    """The contrastive loss of the global batch (the paper's Eq. 3 and 4, with CLIP's temperature).

    Every rank gets the same value. The gradients of a rank's features are those of the global loss; of the gradient
    of `logit_scale` each rank gets the share of its own pictures. So for every parameter, features' or scale, the
    *sum* of the ranks' gradients is the gradient: multiply by the number of ranks where they are averaged.

    Args:
        image_features: (n_local, d), L2-normalised; n_local may differ between ranks and be 0.
        text_features: (n_local, d), L2-normalised; the i-th belongs to the i-th picture.
        logit_scale: one element, what similarities are multiplied by.
        group: the ranks whose batches make the global batch; the default group if None and one is initialised.

    Raises:
        ValueError: shapes that do not fit, or no sample on any rank.
    """
    if image_features.dim() != 2 or image_features.shape != text_features.shape:
        raise ValueError(
            f"features must both be (n, d), not {tuple(image_features.shape)} and {tuple(text_features.shape)}"
        )
    if logit_scale.numel() != 1:
        raise ValueError(f"logit_scale must have one element, not {tuple(logit_scale.shape)}")
    return _ContrastiveLoss.apply(image_features, text_features, logit_scale, group)


class _ContrastiveLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, images: Tensor, texts: Tensor, scale: Tensor, group: dist.ProcessGroup | None):
        ranks = _Ranks(images.shape[0], images.device, group)
        if ranks.total == 0:
            raise ValueError("no sample on any rank: the contrastive loss of an empty batch is not defined")
        all_texts = ranks.gather(texts)
        accumulate = torch.promote_types(images.dtype, torch.float32)
        factor = scale.to(accumulate).reshape(())
        row_lse = torch.full((images.shape[0],), -torch.inf, dtype=accumulate, device=images.device)
        column_lse = torch.full((ranks.total,), -torch.inf, dtype=accumulate, device=images.device)
        for rows, columns in _blocks(images.shape[0], ranks.total):
            similarity = _similarity(images[rows], all_texts[columns], factor)
            row_lse[rows] = torch.logaddexp(row_lse[rows], similarity.logsumexp(1))
            column_lse[columns] = torch.logaddexp(column_lse[columns], similarity.logsumexp(0))
        column_lse = ranks.combine_lse(column_lse)
        own = slice(ranks.offset, ranks.offset + images.shape[0])
        diagonal = factor * (images.to(accumulate) * texts.to(accumulate)).sum(1)
        loss = ranks.sum(((row_lse + column_lse[own]) / 2 - diagonal).sum()) / ranks.total
        ctx.save_for_backward(images, all_texts, scale, row_lse, column_lse)
        ctx.ranks = ranks
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_loss: Tensor):
        images, all_texts, scale, row_lse, column_lse = ctx.saved_tensors
        ranks: _Ranks = ctx.ranks
        factor = scale.to(row_lse.dtype).reshape(())
        grad_images = torch.zeros(images.shape, dtype=row_lse.dtype, device=images.device)
        grad_texts = torch.zeros(all_texts.shape, dtype=row_lse.dtype, device=images.device)
        grad_factor = torch.zeros_like(factor)
        for rows, columns in _blocks(images.shape[0], ranks.total):
            similarity = _similarity(images[rows], all_texts[columns], factor)
            grad = (similarity - row_lse[rows, None]).exp_()
            grad += (similarity - column_lse[columns]).exp_()
            grad /= 2
            pair = ranks.offset + rows.start - columns.start  # the first row's own caption, counted in this block
            grad.diagonal(pair).sub_(1)
            grad_factor += (grad * similarity).sum()
            grad_images[rows] += grad @ all_texts[columns].to(grad.dtype)
            grad_texts[columns] += grad.T @ images[rows].to(grad.dtype)
        grad_texts = ranks.sum(grad_texts)[ranks.offset : ranks.offset + images.shape[0]]
        step = grad_loss.to(row_lse.dtype) / ranks.total
        return (
            (grad_images * (factor * step)).to(images.dtype),
            (grad_texts * (factor * step)).to(images.dtype),
            (grad_factor / factor * step).to(scale.dtype).reshape(scale.shape),
            None,
        )


def _similarity(images: Tensor, texts: Tensor, factor: Tensor) -> Tensor:
    return factor * (images.to(factor.dtype) @ texts.to(factor.dtype).T)


def _blocks(rows: int, columns: int):
    for row in range(0, rows, BLOCK):
        for column in range(0, columns, BLOCK):
            yield slice(row, min(row + BLOCK, rows)), slice(column, min(column + BLOCK, columns))


class _Ranks:
    """Where this rank's samples lie in the global batch, and sums over the ranks."""

    def __init__(self, local: int, device: torch.device, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.size = dist.get_world_size(group) if dist.is_initialized() else 1
        if self.size == 1:
            self.counts, self.offset = [local], 0
        else:
            counts = torch.zeros(self.size, dtype=torch.int64, device=device)
            counts[dist.get_rank(group)] = local
            dist.all_reduce(counts, group=group)
            self.counts = counts.tolist()
            self.offset = sum(self.counts[: dist.get_rank(group)])
        self.total = sum(self.counts)

    def gather(self, local: Tensor) -> Tensor:
        """(n_r, d) of every rank -> (n, d)."""
        if self.size == 1:
            return local
        padded = local.new_zeros(max(self.counts), *local.shape[1:])
        padded[: local.shape[0]] = local
        parts = [torch.empty_like(padded) for _ in self.counts]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:count] for part, count in zip(parts, self.counts, strict=True)])

    def sum(self, value: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(value, group=self.group)
        return value

    def combine_lse(self, partial: Tensor) -> Tensor:
        """Log-sum-exp over the ranks, element by element."""
        if self.size == 1:
            return partial
        largest = partial.clone()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group)
        return largest + self.sum((partial - largest).exp_()).log_()
