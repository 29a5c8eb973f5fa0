"""Attention for sequences that fit on chip: one program per (sequence, head), every score computed once per pass.

Forward: the program holds the keys and values of its sequence and loops over tiles of queries, so that rows of scores
are complete and the softmax needs no rescaling. Backward: it holds queries, outputs and their gradients and loops over
tiles of keys. The scores of an iteration then serve all three gradients, those of its keys and values are complete at
its end, and only the queries' gradient is accumulated across iterations: nothing is summed across programs.

Sequences of a batch differ in length, and tiles have a fixed size. A launch handles the sequences of a group, from
`first_sequence` on, whose length lies in (`shorter`, tile]; the programs of others return at once. Loads and stores
stay within the `tokens` tokens, whatever `cu_seqlens` holds.
"""

from __future__ import annotations

import triton
import triton.language as tl

HEAD_WIDTH = tl.constexpr(64)
PARTS = tl.constexpr(3 * 64)  # elements of a head: its query, key and value
# exp(s / √64) = exp2(s · LOG2_SCALE): the hardware's exponential has base 2.
LOG2_SCALE = tl.constexpr(0.125 * 1.4426950408889634)
SCALE = tl.constexpr(0.125)
# Arguments that vary between calls, excluded from specialisation: a value of 1 or a multiple of 16 must not recompile.
VARYING = ["tokens", "heads", "flagged", "all_causal", "first_sequence", "shorter"]


@triton.jit
def sequence_of(program, cu_seqlens, flags, heads, tokens, flagged, all_causal, first_sequence):
    """The head of a program, and its sequence's first token, length and causality."""
    sequence = first_sequence + program // heads
    start = tl.maximum(tl.load(cu_seqlens + sequence), 0)
    length = tl.maximum(tl.minimum(tl.load(cu_seqlens + sequence + 1), tokens), start) - start
    causal = tl.load(flags + sequence, mask=flagged != 0, other=0).to(tl.int32) + all_causal
    return program % heads, start.to(tl.int64), length, causal != 0


@triton.jit
def visible(rows, length, causal):
    """How many keys each query sees, (rows,), so that one comparison masks both causality and the sequence's end."""
    return tl.where(causal, tl.minimum(rows + 1, length), length)


@triton.jit
def tile_at(base, tokens, stride, length):
    """A (tokens, 64) tile of a tensor with `stride` elements between tokens, zero past the sequence's end."""
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

    TRANSPOSED computes it as (64, KEYS): wgmma needs at least 64 rows, and KEYS may then be smaller.
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
        # Rows past the sequence's end get no weights: exp2(s - inf) = 0.
        row_lse = tl.load(lse + head.to(tl.int64) * tokens + start + rows, mask=rows < length, other=float("inf"))
        sees = visible(rows, length, causal)
        dq = tl.zeros((QUERIES, HEAD_WIDTH), tl.float32)
        for first in range(0, length, KEYS):
            keys = first + tl.arange(0, KEYS)
            k = tile_at(base + HEAD_WIDTH, keys, stride_token, length)
            v = tile_at(base + 2 * HEAD_WIDTH, keys, stride_token, length)
            s = tl.dot(q, tl.trans(k)) * LOG2_SCALE  # (QUERIES, KEYS)
            # Mask before the exponential: a masked score may exceed its row's log-sum-exp by any amount and overflow.
            s = tl.where(keys[None, :] < sees[:, None], s, float("-inf"))
            p = tl.exp2(s - row_lse[:, None])
            dv = sum_over_queries(p.to(q.dtype), do, TRANSPOSED)
            store_tile(grad_base + 2 * HEAD_WIDTH, dv, keys, heads * PARTS, length)
            ds = (p * (tl.dot(do, tl.trans(v)) - delta[:, None])).to(q.dtype)
            # Not the loop's last product: Triton would leave it pending, and ptxas then serialises every wgmma.
            dq = tl.dot(ds, k, dq)
            dk = sum_over_queries(ds, q, TRANSPOSED)
            store_tile(grad_base + HEAD_WIDTH, dk * SCALE, keys, heads * PARTS, length)
        store_tile(grad_base, dq * SCALE, rows, heads * PARTS, length)
