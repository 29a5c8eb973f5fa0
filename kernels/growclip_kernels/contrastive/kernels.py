"""Triton kernels over tiles of scores S = factor · I Tᵀ, which stay on chip.

A launch covers one block of the matrix: `rows` images, `columns` captions, and `pair`, the column of the caption of
row 0 (any integer: it may lie outside the block). Every program writes partial results for its tile, which the caller
combines. There are no atomics, so the same inputs give the same bits.

With SCORES_GIVEN, a library has written the products I Tᵀ to memory; otherwise a program computes those of its tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e38)  # its exponential is 0, and LOWEST - LOWEST is 0, where -inf - -inf would be NaN
VARYING = ["rows", "columns", "pair"]  # they change with the batch, which must not recompile a kernel


@triton.jit
def _products(
    images, texts, products, row, column, rows, columns, d, products_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SCORES_GIVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The tile (BLOCK_M, BLOCK_N) of I Tᵀ at (row, column), fp32; d is a multiple of BLOCK_K."""
    # Past the last row and column these are read again, so the loop needs no masks; the caller ignores the copies.
    i = tl.minimum(row + tl.arange(0, BLOCK_M), rows - 1).to(tl.int64)
    j = column + tl.arange(0, BLOCK_N)
    if SCORES_GIVEN:  # j is not clamped: loads are vectorised only where it is known to be contiguous
        tile = tl.load(products + i[:, None] * products_stride + j[None, :], mask=(j < columns)[None, :], other=0.0)
    else:
        j = tl.minimum(j, columns - 1).to(tl.int64)
        k = tl.arange(0, BLOCK_K)
        image = images + i[:, None] * d + k[None, :]  # (BLOCK_M, BLOCK_K)
        text = texts + j[None, :] * d + k[:, None]  # (BLOCK_K, BLOCK_N)
        tile = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, d, BLOCK_K):
            tile = tl.dot(tl.load(image + start), tl.load(text + start), tile, input_precision=PRECISION)
    return tile


@triton.jit(do_not_specialize=VARYING)
def log_sum_exp_kernel(
    images,  # (rows, d)
    texts,  # (columns, d)
    products,  # (rows, products_stride) fp32
    factor,  # () fp32
    row_partials,  # (column tiles, rows) fp32
    column_partials,  # (row tiles, columns) fp32
    diagonal,  # (rows,) fp32: score of the image's own caption, written if that lies in this block
    rows, columns, d, products_stride, pair,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SCORES_GIVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of the rows and of the columns of a tile, one tile per program.

    A program that looped over several tiles of its rows could keep their results in registers, but would need twice as
    many registers as this straight-line code. A multiprocessor would then run one program instead of two, and the
    matrix units would idle during the exponentials. The cost of one tile is 4 more bytes written per BLOCK_N scores.
    """
    row, column = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    i, j = row + tl.arange(0, BLOCK_M), column + tl.arange(0, BLOCK_N)
    product = _products(
        images, texts, products, row, column, rows, columns, d, products_stride,
        BLOCK_M, BLOCK_N, BLOCK_K, SCORES_GIVEN, PRECISION,
    )  # fmt: skip
    score = product * tl.load(factor)
    if SCORES_GIVEN:
        score = tl.where((j < columns)[None, :], score, LOWEST)
    if (row + pair < column + BLOCK_N) & (row + BLOCK_M + pair > column):
        own = tl.sum(tl.where((i + pair)[:, None] == j[None, :], score, 0.0), 1)
        inside = (i < rows) & (i + pair >= column) & (i + pair < tl.minimum(column + BLOCK_N, columns))
        tl.store(diagonal + i, own, mask=inside)
    # One shift per row and per column: with a single shift for the tile, a row or column whose maximum is far below
    # the tile's would underflow to 0. The copies past the last row and column do not change a maximum.
    shift = tl.max(score, 1)
    total = tl.sum(tl.exp(score - shift[:, None]) * (j < columns).to(tl.float32)[None, :], 1)
    tl.store(row_partials + tl.program_id(1).to(tl.int64) * rows + i, shift + tl.log(total), mask=i < rows)
    shift = tl.max(score, 0)
    total = tl.sum(tl.exp(score - shift[None, :]) * (i < rows).to(tl.float32)[:, None], 0)
    tl.store(column_partials + tl.program_id(0).to(tl.int64) * columns + j, shift + tl.log(total), mask=j < columns)


@triton.jit
def _log1p(x):
    """log(1 + x) for 0 <= x <= 1, accurate for the small x of most pairs in a sigmoid loss, where log(1 + x) is not."""
    return tl.where(x < 0.0078125, x * (1 - x * (0.5 - x * 0.3333333333)), tl.log(1 + x))


@triton.jit
def _total(tile, rows):
    """The sum of the selected rows of a tile, (1,)."""
    # Both sums reduce a matrix: on sm_100, Triton 3.7 fails to compile the sum of a vector that stems from a product.
    return tl.sum(tl.where(rows[:, None], tl.sum(tile, 1, keep_dims=True), 0.0), 0)


@triton.jit(do_not_specialize=VARYING)
def gradient_kernel(
    images,  # (rows, d)
    texts,  # (columns, d)
    products,  # (rows, products_stride) fp32
    factor,  # () fp32
    bias,  # () fp32, if SIGMOID
    row_lse,  # (rows,) fp32, unless SIGMOID
    column_lse,  # (columns,) fp32, unless SIGMOID
    gradient,  # 2^GRAIN_BITS · G: (rows, columns), both rounded up to whole tiles, with a row stride of gradient_stride
    sums,  # (1, or 3 if SIGMOID; programs) fp32: of G ∘ I Tᵀ, of the loss, of G
    rows, columns, d, products_stride, gradient_stride, pair,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SCORES_GIVEN: tl.constexpr, SIGMOID: tl.constexpr, GRAIN_BITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """G, the gradient of the summed loss with respect to the scores, one tile per program.

    Softmax: G = (exp(S - row_lse) + exp(S - column_lse)) / 2. Sigmoid: G = σ(S + bias). Minus 1 on the diagonal.
    """
    row, column = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    i, j = row + tl.arange(0, BLOCK_M), column + tl.arange(0, BLOCK_N)
    product = _products(
        images, texts, products, row, column, rows, columns, d, products_stride,
        BLOCK_M, BLOCK_N, BLOCK_K, SCORES_GIVEN, PRECISION,
    )  # fmt: skip
    # No branches on the tile's contents: they would keep every intermediate tile in registers at once.
    own = (i + pair)[:, None] == j[None, :]
    GRAIN: tl.constexpr = 2.0**GRAIN_BITS
    if SIGMOID:
        score = product * tl.load(factor) + tl.load(bias)
        score = tl.where(own, -score, score)  # the loss is softplus(-S) for a pair, else softplus(S)
        small = tl.exp(-tl.abs(score))
        loss = tl.maximum(score, 0.0) + _log1p(small)
        value = tl.where(score < 0, small, 1.0) / (1 + small)
        value = tl.where(own, -GRAIN, GRAIN) * value
    else:
        score = product * tl.load(factor)
        if SCORES_GIVEN:
            score = tl.where((j < columns)[None, :], score, LOWEST)
        of_row = tl.load(row_lse + tl.minimum(i, rows - 1)) * LOG2_E - GRAIN_BITS
        of_column = tl.load(column_lse + tl.minimum(j, columns - 1)) * LOG2_E - GRAIN_BITS
        value = tl.exp2(score * LOG2_E - of_row[:, None]) + tl.exp2(score * LOG2_E - of_column[None, :])
        value = 0.5 * value - tl.where(own, GRAIN, 0.0)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0) + tl.arange(0, 1)  # (1,), as its sums
    # Exclude the copies past the last row and column.
    product = tl.where((j < columns)[None, :], product, 0.0)
    tl.store(sums + program, _total(value * product, i < rows) / GRAIN)
    if SIGMOID:
        programs = tl.num_programs(0) * tl.num_programs(1)
        loss = tl.where((j < columns)[None, :], loss, 0.0)
        tl.store(sums + programs + program, _total(loss, i < rows))
        d_bias = _total(tl.where((j < columns)[None, :], value, 0.0), i < rows)
        tl.store(sums + 2 * programs + program, d_bias / GRAIN)
    target = gradient + i.to(tl.int64)[:, None] * gradient_stride + j[None, :]
    tl.store(target, value.to(gradient.dtype.element_ty))
