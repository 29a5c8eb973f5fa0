"""Kernels that update a flat shard in one pass; a program updates a block of one span of one tensor.

Values that change between updates are read from memory, so launches are identical. There are no atomics, so the same
inputs give the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

FIELDS = tl.constexpr(6)  # columns of `Tables.spans`
NUMBERS = tl.constexpr(4)  # per tensor: 1 / (1 - β1ᵗ), 1 / √(1 - β2ᵗ), weight decay, learning rate


@triton.jit
def _elements(spans, span_of, BLOCK: tl.constexpr):
    """The program's tensor, the addresses of its elements (BLOCK,), and the mask of those that exist."""
    block = tl.program_id(0)
    row = spans + tl.load(span_of + block).to(tl.int64) * FIELDS
    tensor, offset, columns = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    stride, elements, first_block = tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)
    start = (block - first_block) * BLOCK  # within the span, whose rows are concatenated
    element = tl.arange(0, BLOCK)
    address = offset + start + element
    if columns < elements:  # several rows; a single one needs no divisions
        shifted = (element + start % columns).to(tl.uint32)
        below = shifted // columns.to(tl.uint32)
        column = shifted - below * columns.to(tl.uint32)
        address = offset + (start // columns + below.to(tl.int64)) * stride + column.to(tl.int64)
    return tensor, address, start + element < elements


@triton.jit
def _normalised(g, m, v, numbers, tensor, take1, keep2, take2, eps):
    """The updated moments, and m̂ / (√v̂ + eps)."""
    m = m + take1 * (g - m)
    v = keep2 * v + take2 * g * g
    denominator = tl.sqrt_rn(v) * tl.load(numbers + tensor * NUMBERS + 1) + eps
    return m, v, tl.div_rn(m, denominator) * tl.load(numbers + tensor * NUMBERS)


@triton.jit
def adamw_kernel(
    weight, gradient, exp_avg, exp_avg_sq,  # (n,) fp32
    spans, span_of,  # see Tables
    numbers,  # (tensors, NUMBERS) fp32
    take1, keep2, take2, eps,  # 1 - β1, β2, 1 - β2; passed, so that the differences are rounded once
    BLOCK: tl.constexpr,
):  # fmt: skip
    """w ← (1 - lr · decay) w - lr m̂ / (√v̂ + eps), and updates the moments."""
    tensor, at, there = _elements(spans, span_of, BLOCK)
    g = tl.load(gradient + at, mask=there, other=0.0)
    m = tl.load(exp_avg + at, mask=there, other=0.0)
    v = tl.load(exp_avg_sq + at, mask=there, other=0.0)
    w = tl.load(weight + at, mask=there, other=0.0)
    m, v, u = _normalised(g, m, v, numbers, tensor, take1, keep2, take2, eps)
    decay, lr = tl.load(numbers + tensor * NUMBERS + 2), tl.load(numbers + tensor * NUMBERS + 3)
    tl.store(exp_avg + at, m, mask=there)
    tl.store(exp_avg_sq + at, v, mask=there)
    tl.store(weight + at, w * (1 - lr * decay) - lr * u, mask=there)


@triton.jit
def lamb_direction_kernel(
    weight, gradient, exp_avg, exp_avg_sq,  # (n,) fp32
    partials,  # (2, blocks) fp32: each program's sums of squares of w and u
    spans, span_of,  # see Tables
    numbers,  # (tensors, NUMBERS) fp32
    take1, keep2, take2, eps,  # 1 - β1, β2, 1 - β2
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Updates the moments, and writes u = m̂ / (√v̂ + eps) + decay · w over the gradient."""
    tensor, at, there = _elements(spans, span_of, BLOCK)
    g = tl.load(gradient + at, mask=there, other=0.0)
    m = tl.load(exp_avg + at, mask=there, other=0.0)
    v = tl.load(exp_avg_sq + at, mask=there, other=0.0)
    w = tl.load(weight + at, mask=there, other=0.0)
    m, v, u = _normalised(g, m, v, numbers, tensor, take1, keep2, take2, eps)
    u += tl.load(numbers + tensor * NUMBERS + 2) * w  # masked elements are 0 in w and u
    tl.store(exp_avg + at, m, mask=there)
    tl.store(exp_avg_sq + at, v, mask=there)
    tl.store(gradient + at, u, mask=there)
    tl.store(partials + tl.program_id(0), tl.sum(w * w, 0))
    tl.store(partials + tl.num_programs(0) + tl.program_id(0), tl.sum(u * u, 0))


@triton.jit(do_not_specialize=("blocks",))
def squares_kernel(
    partials,  # (2, blocks) fp32
    first_block,  # (tensors + 1,) int32
    is_matrix,  # (tensors,) int32
    squares,  # (tensors, 2) fp64
    blocks,
    BLOCK: tl.constexpr,
):
    """Sums a tensor's partial sums, in fp64 and always in the same order; 0 for tensors that are not matrices."""
    tensor = tl.program_id(0)
    begin, end = tl.load(first_block + tensor), tl.load(first_block + tensor + 1)
    end = tl.where(tl.load(is_matrix + tensor) != 0, end, begin)
    of_weight, of_direction = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    for start in range(begin, end, BLOCK):
        block = start + tl.arange(0, BLOCK)
        of_weight += tl.load(partials + block, mask=block < end, other=0.0).to(tl.float64)
        of_direction += tl.load(partials + blocks + block, mask=block < end, other=0.0).to(tl.float64)
    tl.store(squares + 2 * tensor, tl.sum(of_weight, 0))
    tl.store(squares + 2 * tensor + 1, tl.sum(of_direction, 0))


@triton.jit
def lamb_apply_kernel(
    weight, direction,  # (n,) fp32
    rates,  # (tensors,) fp32: learning rate times trust ratio
    spans, span_of,  # see Tables
    BLOCK: tl.constexpr,
):  # fmt: skip
    """w ← w - rate · u."""
    tensor, at, there = _elements(spans, span_of, BLOCK)
    w = tl.load(weight + at, mask=there, other=0.0)
    u = tl.load(direction + at, mask=there, other=0.0)
    tl.store(weight + at, w - tl.load(rates + tensor) * u, mask=there)
