"""Attention of sequences that fit on chip: one program a (sequence, head), every score made once a pass.

Forward: the program holds the keys and values of its sequence and takes the queries some at a time, so that a row of
scores is whole and its softmax needs no correction. Backward: it holds queries, output and their gradients and takes
the keys some at a time. The scores of a turn then serve all three gradients, those of its keys and values are complete
when it ends, and only the queries' gradient is carried on: nothing is summed over programs.

Sequences of a batch differ in length, and tiles are of a fixed size. A launch serves those of a group, from
`first_sequence` on, whose length lies in (`shorter`, tile]; programs of others return at once. Loads and stores never
leave the `tokens` that there are, whatever `cu_seqlens` holds.
"""

from __future__ import annotations

import triton
import triton.language as tl

HEAD_WIDTH = tl.constexpr(64)
PARTS = tl.constexpr(3 * 64)  # elements of a head: its query, key and value
# exp(s / √64) = exp2(s · LOG2_SCALE): the hardware's exponential is that of base 2.
LOG2_SCALE = tl.constexpr(0.125 * 1.4426950408889634)
SCALE = tl.constexpr(0.125)
# Arguments that vary from call to call: no kernel is compiled again because one of them is 1, or a multiple of 16.
VARYING = ["tokens", "heads", "flagged", "all_causal", "first_sequence", "shorter"]


@triton.jit
def sequence_of(program, cu_seqlens, flags, heads, tokens, flagged, all_causal, first_sequence):
    """Which (sequence, head) a program works on: head, first token, length, and whether it is causal."""
    sequence = first_sequence + program // heads
    start = tl.maximum(tl.load(cu_seqlens + sequence), 0)
    length = tl.maximum(tl.minimum(tl.load(cu_seqlens + sequence + 1), tokens), start) - start
    causal = tl.load(flags + sequence, mask=flagged != 0, other=0).to(tl.int32) + all_causal
    return program % heads, start.to(tl.int64), length, causal != 0


@triton.jit
def visible(rows, length, causal):
    """How many keys each query sees, (rows,): one comparison masks for causality and for the sequence's end."""
    return tl.where(causal, tl.minimum(rows + 1, length), length)


@triton.jit
def tile_at(base, tokens, stride, length):
    """A (tokens, 64) tile of a tensor with `stride` elements between tokens; zeros behind the sequence's end."""
    d = tl.arange(0, HEAD_WIDTH)
    return tl.load(base + tokens[:, None] * stride + d[None, :], mask=tokens[:, None] < length, other=0.0)


@triton.jit
def store_tile(base, tile, tokens, stride, length):
    d = tl.arange(0, HEAD_WIDTH)
    at = base + tokens[:, None] * stride + d[None, :]
    tl.store(at, tile.to(base.dtype.element_ty), mask=tokens[:, None] < length)


@triton.jit
def sum_over_queries(weights, tile, TRANSPOSED: tl.constexpr):
    """weightsᵀ · tile: (QUERIES, KEYS), (QUERIES, 64) -> (KEYS, 64).

    TRANSPOSED makes the product as (64, KEYS): wgmma takes no fewer than 64 rows, and this way KEYS may be less.
    """
    if TRANSPOSED:
        return tl.trans(tl.dot(tl.trans(tile), weights))
    return tl.dot(tl.trans(weights), tile)


@triton.jit(do_not_specialize=VARYING)
def forward_on_chip(
    qkv, out, lse, cu_seqlens, flags, tokens, heads, stride_token, flagged, all_causal, first_sequence, shorter,
    KEYS: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """qkv (T, H, 3, 64) -> out (T, H, 64), lse (H, T): log2 of each row's sum of exponentials."""
    head, start, length, causal = sequence_of(
        tl.program_id(0), cu_seqlens, flags, heads, tokens, flagged, all_causal, first_sequence
    )  # fmt: skip
    if length > shorter and length <= KEYS:
        base = qkv + start * stride_token + head * PARTS
        keys = tl.arange(0, KEYS)
        k = tile_at(base + HEAD_WIDTH, keys, stride_token, length)
        v = tile_at(base + 2 * HEAD_WIDTH, keys, stride_token, length)
        out += (start * heads + head) * HEAD_WIDTH
        lse += head.to(tl.int64) * tokens + start
        for first in range(0, length, QUERIES):
            rows = first + tl.arange(0, QUERIES)
            q = tile_at(base, rows, stride_token, length)
            s = tl.dot(q, tl.trans(k)) * LOG2_SCALE  # (QUERIES, KEYS)
            s = tl.where(keys[None, :] < visible(rows, length, causal)[:, None], s, float("-inf"))
            largest = tl.max(s, 1)
            p = tl.exp2(s - largest[:, None])
            total = tl.sum(p, 1)
            o = tl.dot(p.to(v.dtype), v) / total[:, None]
            store_tile(out, o, rows, heads * HEAD_WIDTH, length)
            tl.store(lse + rows, largest + tl.log2(total), mask=rows < length)


@triton.jit(do_not_specialize=VARYING)
def backward_on_chip(
    qkv, out, grad_out, lse, grad_qkv, cu_seqlens, flags,
    tokens, heads, stride_token, flagged, all_causal, first_sequence, shorter,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Writes grad_qkv (T, H, 3, 64), all three parts."""
    head, start, length, causal = sequence_of(
        tl.program_id(0), cu_seqlens, flags, heads, tokens, flagged, all_causal, first_sequence
    )  # fmt: skip
    if length > shorter and length <= QUERIES:
        base = qkv + start * stride_token + head * PARTS
        at_out = (start * heads + head) * HEAD_WIDTH
        grad_base = grad_qkv + (start * heads + head) * PARTS
        rows = tl.arange(0, QUERIES)
        q = tile_at(base, rows, stride_token, length)
        do = tile_at(grad_out + at_out, rows, heads * HEAD_WIDTH, length)
        o = tile_at(out + at_out, rows, heads * HEAD_WIDTH, length)
        delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)  # (QUERIES,)
        # Behind the end no row has weights: exp2(s - inf) = 0.
        row_lse = tl.load(lse + head.to(tl.int64) * tokens + start + rows, mask=rows < length, other=float("inf"))
        sees = visible(rows, length, causal)
        dq = tl.zeros((QUERIES, HEAD_WIDTH), tl.float32)
        for first in range(0, length, KEYS):
            keys = first + tl.arange(0, KEYS)
            k = tile_at(base + HEAD_WIDTH, keys, stride_token, length)
            v = tile_at(base + 2 * HEAD_WIDTH, keys, stride_token, length)
            s = tl.dot(q, tl.trans(k)) * LOG2_SCALE  # (QUERIES, KEYS)
            # The mask comes before the exponential: a masked score may lie above its row's log-sum-exp without bound.
            s = tl.where(keys[None, :] < sees[:, None], s, float("-inf"))
            p = tl.exp2(s - row_lse[:, None])
            dv = sum_over_queries(p.to(q.dtype), do, TRANSPOSED)
            store_tile(grad_base + 2 * HEAD_WIDTH, dv, keys, heads * PARTS, length)
            ds = (p * (tl.dot(do, tl.trans(v)) - delta[:, None])).to(q.dtype)
            dk = sum_over_queries(ds, q, TRANSPOSED)
            store_tile(grad_base + HEAD_WIDTH, dk * SCALE, keys, heads * PARTS, length)
            dq = tl.dot(ds, k, dq)
        store_tile(grad_base, dq * SCALE, rows, heads * PARTS, length)
