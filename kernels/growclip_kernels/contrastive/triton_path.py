"""A rank's own part of the losses with Triton kernels: what `torch_path` computes, as custom operators.

The forward pass of the fused design never writes a score. The backward pass recomputes each tile of scores and writes
its G into a block, of which one is in memory at a time; a library then multiplies that with the features and
accumulates in fp32. With the two passes over the scores this takes 8 · n_local · n · d operations in all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.library import custom_op

from growclip_kernels.contrastive import plan
from growclip_kernels.contrastive.kernels import gradient_kernel, log_sum_exp_kernel
from growclip_kernels.devices import capability_of

DEPTH = 64  # features are zero-padded to a multiple, which changes no product and spares kernels the masks


@custom_op("growclip::contrastive_log_sum_exp", mutates_args=())
def log_sum_exp(
    images: Tensor, texts: Tensor, factor: Tensor, offset: int, design: str = "fused"
) -> tuple[Tensor, Tensor, Tensor]:
    """See `torch_path.log_sum_exp`. `design` is a `plan.Design`."""
    (n_local, d), n = images.shape, texts.shape[0]
    row_lse = factor.new_full((n_local,), -torch.inf)
    column_lse = factor.new_full((n,), -torch.inf)
    diagonal = factor.new_empty(n_local)
    if n_local == 0:
        return row_lse, column_lse, diagonal
    scores = _Scores(images, texts, factor, design)
    tile = plan.tile("softmax", images.dtype, capability_of(images.device), design)
    block = plan.forward_block(n_local, n, d) if design == "fused" else plan.score_block(n_local, n, d)
    for rows, columns in plan.blocks(n_local, n, block):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        grid = triton.cdiv(height, tile.rows), triton.cdiv(width, tile.columns)
        row_partials, column_partials = factor.new_empty(grid[1], height), factor.new_empty(grid[0], width)
        with torch.cuda.device_of(images):
            log_sum_exp_kernel[grid](
                **scores.arguments(rows, columns, offset),
                row_partials=row_partials,
                column_partials=column_partials,
                diagonal=diagonal[rows],
                **_options(tile, images.dtype),
            )
        row_lse[rows] = torch.logaddexp(row_lse[rows], row_partials.logsumexp(0))
        column_lse[columns] = torch.logaddexp(column_lse[columns], column_partials.logsumexp(0))
    return row_lse, column_lse, diagonal


@log_sum_exp.register_fake
def _(images: Tensor, texts: Tensor, factor: Tensor, offset: int, design: str = "fused"):
    return factor.new_empty(images.shape[0]), factor.new_empty(texts.shape[0]), factor.new_empty(images.shape[0])


@custom_op("growclip::contrastive_gradient", mutates_args=())
def gradient(
    images: Tensor,
    texts: Tensor,
    factor: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    offset: int,
    design: str = "fused",
) -> tuple[Tensor, Tensor, Tensor]:
    """See `torch_path.gradient`. `design` is a `plan.Design`."""
    d_images, d_texts, sums = _differentiate(images, texts, factor, offset, design, True, row_lse, column_lse, None)
    return d_images, d_texts, sums[0].clone()


@gradient.register_fake
def _(images: Tensor, texts: Tensor, factor: Tensor, row_lse, column_lse, offset: int, design: str = "fused"):
    return factor.new_empty(images.shape), factor.new_empty(texts.shape), torch.empty_like(factor)


@custom_op("growclip::contrastive_sigmoid", mutates_args=())
def sigmoid(
    images: Tensor,
    texts: Tensor,
    factor: Tensor,
    bias: Tensor,
    offset: int,
    differentiate: bool,
    design: str = "fused",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `torch_path.sigmoid`. `design` is a `plan.Design`."""
    d_images, d_texts, sums = _differentiate(images, texts, factor, offset, design, differentiate, None, None, bias)
    d_factor, loss, d_bias = (total.clone() for total in sums)
    return loss, d_images, d_texts, d_factor, d_bias


@sigmoid.register_fake
def _(images: Tensor, texts: Tensor, factor: Tensor, bias, offset: int, differentiate: bool, design: str = "fused"):
    d_images, d_texts = (factor.new_empty((x if differentiate else x[:0]).shape) for x in (images, texts))
    return torch.empty_like(factor), d_images, d_texts, torch.empty_like(factor), torch.empty_like(factor)


def _differentiate(
    images: Tensor,
    texts: Tensor,
    factor: Tensor,
    offset: int,
    design: plan.Design,
    products_wanted: bool,
    row_lse: Tensor | None,
    column_lse: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of images and captions, and the sums of `gradient_kernel`; the loss is softmax if there is no bias."""
    (n_local, d), n, dtype = images.shape, texts.shape[0], images.dtype
    d_images, d_texts = (factor.new_zeros((x if products_wanted else x[:0]).shape) for x in (images, texts))
    sums = torch.zeros(1 if bias is None else 3, dtype=torch.float64, device=factor.device)
    if n_local == 0:
        return d_images, d_texts, sums.to(factor.dtype)
    scores = _Scores(images, texts, factor, design)
    tile = plan.tile("softmax" if bias is None else "sigmoid", dtype, capability_of(images.device), design)
    block = plan.score_block(n_local, n, d)
    buffer = images.new_empty(block)
    row_lse, column_lse, bias = (None if value is None else _aligned(value) for value in (row_lse, column_lse, bias))
    for rows, columns in plan.blocks(n_local, n, block):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        grid = triton.cdiv(height, tile.rows), triton.cdiv(width, tile.columns)
        partials = factor.new_empty(len(sums), grid[0] * grid[1])
        with torch.cuda.device_of(images):
            gradient_kernel[grid](
                **scores.arguments(rows, columns, offset),
                bias=bias,
                row_lse=None if row_lse is None else row_lse[rows],
                column_lse=None if column_lse is None else column_lse[columns],
                gradient=buffer,
                sums=partials,
                gradient_stride=block[1],
                SIGMOID=bias is not None,
                GRAIN_BITS=plan.grain_bits(dtype),
                **_options(tile, dtype),
            )
        sums += partials.sum(1, dtype=torch.float64)
        if products_wanted:
            grad = buffer[:height, :width]
            _add_product(d_images[rows], grad, texts[columns])
            _add_product(d_texts[columns], grad.T, images[rows])
    scale = factor / 2 ** plan.grain_bits(dtype)
    return d_images.mul_(scale), d_texts.mul_(scale), sums.to(factor.dtype)


class _Scores:
    """The input from which kernels compute scores: the features, or products of these that a library wrote."""

    def __init__(self, images: Tensor, texts: Tensor, factor: Tensor, design: plan.Design) -> None:
        self.factor = _aligned(factor)
        self.images, self.texts, self.products = images, texts, None
        if design == "fused":
            self.images, self.texts = _padded(images), _padded(texts)
        else:
            block = plan.score_block(images.shape[0], texts.shape[0], images.shape[1])
            self.products = factor.new_empty(block)

    def arguments(self, rows: slice, columns: slice, offset: int) -> dict[str, object]:
        """The arguments that both kernels take, for one block."""
        images, texts = self.images[rows], self.texts[columns]
        height, width = images.shape[0], texts.shape[0]
        if self.products is not None:
            _product(self.products[:height, :width], images, texts.T)
        given = self.products is not None
        return {
            "images": None if given else images,
            "texts": None if given else texts,
            "products": self.products,
            "factor": self.factor,
            "rows": height,
            "columns": width,
            "d": None if given else images.shape[1],
            "products_stride": self.products.shape[1] if given else None,
            "pair": offset + rows.start - columns.start,
            "SCORES_GIVEN": given,
        }


def _options(tile: plan.Tile, dtype: torch.dtype) -> dict[str, object]:
    return {
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "BLOCK_K": tile.depth,
        "PRECISION": plan.precision(dtype),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _padded(features: Tensor) -> Tensor:
    missing = -features.shape[1] % DEPTH
    return F.pad(features, (0, missing)) if missing else _aligned(features)


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it that is contiguous and 16-byte aligned, as the compiled kernels assume."""
    dense = tensor.contiguous()
    return dense if dense.data_ptr() % 16 == 0 else dense.clone()


def _product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out = a b in fp32."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif a.is_cuda:
        torch.ops.aten.mm.dtype_out(a, b, out.dtype, out=out)
    else:  # PyTorch has no such products on the CPU
        torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b in fp32."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.ops.aten.addmm.dtype_out(total, a, b, total.dtype, out=total)
    else:  # PyTorch has no such products on the CPU
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
