"""Triton kernels over tiles of scores S = factor · I Tᵀ, which stay on chip.

Every kernel sees one block of the matrix: `rows` pictures, `columns` captions, and `pair`, the column of row 0's own
caption (any integer: it may lie outside the block). What a program finds out about its tile goes into partial
results of its own, which the caller combines: no atomics, so the same inputs give the same bits.

With SCORES_GIVEN the products I Tᵀ were made by a library and lie in memory; otherwise a program makes them.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e38)  # its exponential is 0; less itself it is 0, where -inf would be NaN
VARYING = ["rows", "columns", "pair"]  # change with the batch: no kernel is compiled again for them


@triton.jit
def _products(
    images, texts, products, row, column, rows, columns, d, products_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SCORES_GIVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The tile (BLOCK_M, BLOCK_N) of I Tᵀ at (row, column), fp32; d is a multiple of BLOCK_K."""
    # Behind the last row and column these are read again: no masks in the loop, and the caller does not count them.
    i = tl.minimum(row + tl.arange(0, BLOCK_M), rows - 1).to(tl.int64)
    j = column + tl.arange(0, BLOCK_N)
    if SCORES_GIVEN:  # whole vectors are loaded only where j is known to be contiguous
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
    diagonal,  # (rows,) fp32: written where the own caption is in this block
    rows, columns, d, products_stride, pair,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SCORES_GIVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of the rows and of the columns of a tile, a tile a program.

    A program that went through several tiles of its rows could keep those in registers, but takes twice as many
    registers as this straight line, and a multiprocessor then runs one program instead of two: nothing would fill
    the matrix units while it exponentiates. What this writes more is 4 bytes for every BLOCK_N scores.
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
    # A shift for every row and one for every column: with one for the tile, those whose best is far below the tile's
    # would lose all their terms. Behind the last row and column these are repeated: no maximum changes.
    shift = tl.max(score, 1)
    total = tl.sum(tl.exp(score - shift[:, None]) * (j < columns).to(tl.float32)[None, :], 1)
    tl.store(row_partials + tl.program_id(1).to(tl.int64) * rows + i, shift + tl.log(total), mask=i < rows)
    shift = tl.max(score, 0)
    total = tl.sum(tl.exp(score - shift[None, :]) * (i < rows).to(tl.float32)[:, None], 0)
    tl.store(column_partials + tl.program_id(0).to(tl.int64) * columns + j, shift + tl.log(total), mask=j < columns)


@triton.jit
def _log1p(x):
    """log(1 + x), 0 <= x <= 1; log alone loses the small x that most pairs of a sigmoid loss have."""
    return tl.where(x < 0.0078125, x * (1 - x * (0.5 - x * 0.3333333333)), tl.log(1 + x))


@triton.jit
def _total(tile, rows):
    """The sum of those rows of a tile, (1,)."""
    # Both sums are of a matrix: Triton 3.7 fails to compile that of a vector, where it comes of a product on sm_100.
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
    gradient,  # 2^GRAIN_BITS · G: (rows, columns), both rounded up to whole tiles, gradient_stride from row to row
    sums,  # (1, or 3 if SIGMOID; programs) fp32: of G ∘ I Tᵀ, of the loss, of G
    rows, columns, d, products_stride, gradient_stride, pair,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SCORES_GIVEN: tl.constexpr, SIGMOID: tl.constexpr, GRAIN_BITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """G, the gradient of the sum of the losses in the scores, a tile a program.

    Softmax: G = (exp(S - row_lse) + exp(S - column_lse)) / 2 - 1 on the diagonal. Sigmoid: G = σ(S + bias) - 1 there.
    """
    row, column = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    i, j = row + tl.arange(0, BLOCK_M), column + tl.arange(0, BLOCK_N)
    product = _products(
        images, texts, products, row, column, rows, columns, d, products_stride,
        BLOCK_M, BLOCK_N, BLOCK_K, SCORES_GIVEN, PRECISION,
    )  # fmt: skip
    # No branches on what a tile contains: they would hold every intermediate tile in registers at once.
    own = (i + pair)[:, None] == j[None, :]
    GRAIN: tl.constexpr = 2.0**GRAIN_BITS
    if SIGMOID:
        score = product * tl.load(factor) + tl.load(bias)
        score = tl.where(own, -score, score)  # the loss of a pair is softplus(-S), of any two others softplus(S)
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
    # What lies behind the last row and column repeats these, and does not count.
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
