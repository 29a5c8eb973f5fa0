"""Attention for sequences of any length: a program holds a tile of queries and loops over tiles of keys, or vice versa.

The softmax is computed online (Milakov & Gimelshein 2018; Dao et al. 2022). The backward pass is two launches, for the
queries' gradient and then for the keys' and values', so that each sum stays within one program.
"""

from __future__ import annotations

import triton
import triton.language as tl

from growclip_kernels.packed_attention.on_chip import (
    HEAD_WIDTH,
    LOG2_SCALE,
    PARTS,
    SCALE,
    VARYING,
    sequence_of,
    store_tile,
    tile_at,
    visible,
)


@triton.jit(do_not_specialize=[*VARYING, "tiles"])
def forward_looping(
    qkv, out, lse, cu_seqlens, flags, tokens, heads, stride_token, flagged, all_causal, first_sequence, shorter, tiles,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """qkv (T, H, 3, 64) -> out (T, H, 64), lse (H, T) to base 2; a program computes `QUERIES` rows of one head."""
    head, start, length, causal = sequence_of(
        tl.program_id(0) // tiles, cu_seqlens, flags, heads, tokens, flagged, all_causal, first_sequence
    )  # fmt: skip
    first_row = tl.program_id(0) % tiles * QUERIES
    if length > shorter and first_row < length:
        base = qkv + start * stride_token + head * PARTS
        rows = first_row + tl.arange(0, QUERIES)
        sees = visible(rows, length, causal)
        q = tile_at(base, rows, stride_token, length)
        largest = tl.full((QUERIES,), float("-inf"), tl.float32)
        total = tl.zeros((QUERIES,), tl.float32)
        o = tl.zeros((QUERIES, HEAD_WIDTH), tl.float32)
        # Every row sees the first key, so `largest` is finite from the first iteration on.
        for first in range(0, tl.max(sees), KEYS):
            keys = first + tl.arange(0, KEYS)
            k = tile_at(base + HEAD_WIDTH, keys, stride_token, length)
            v = tile_at(base + 2 * HEAD_WIDTH, keys, stride_token, length)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * LOG2_SCALE
            s = tl.where(keys[None, :] < sees[:, None], s, float("-inf"))
            new_largest = tl.maximum(largest, tl.max(s, 1))
            p = tl.exp2(s - new_largest[:, None])
            correction = tl.exp2(largest - new_largest)
            total = total * correction + tl.sum(p, 1)
            o = tl.dot(p.to(v.dtype), v, o * correction[:, None], input_precision=PRECISION)
            largest = new_largest
        store_tile(out + (start * heads + head) * HEAD_WIDTH, o / total[:, None], rows, heads * HEAD_WIDTH, length)
        tl.store(lse + head.to(tl.int64) * tokens + start + rows, largest + tl.log2(total), mask=rows < length)


@triton.jit(do_not_specialize=[*VARYING, "tiles"])
def backward_queries(
    qkv, out, grad_out, lse, delta, grad_qkv, cu_seqlens, flags,
    tokens, heads, stride_token, flagged, all_causal, first_sequence, shorter, tiles,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The queries' part of grad_qkv, a tile of queries per program, and delta (H, T), row sums of out · grad_out."""
    head, start, length, causal = sequence_of(
        tl.program_id(0) // tiles, cu_seqlens, flags, heads, tokens, flagged, all_causal, first_sequence
    )  # fmt: skip
    first_row = tl.program_id(0) % tiles * QUERIES
    if length > shorter and first_row < length:
        base = qkv + start * stride_token + head * PARTS
        at_out = (start * heads + head) * HEAD_WIDTH
        at_row = head.to(tl.int64) * tokens + start
        rows = first_row + tl.arange(0, QUERIES)
        sees = visible(rows, length, causal)
        q = tile_at(base, rows, stride_token, length)
        do = tile_at(grad_out + at_out, rows, heads * HEAD_WIDTH, length)
        o = tile_at(out + at_out, rows, heads * HEAD_WIDTH, length)
        row_delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
        tl.store(delta + at_row + rows, row_delta, mask=rows < length)
        row_lse = tl.load(lse + at_row + rows, mask=rows < length, other=float("inf"))
        dq = tl.zeros((QUERIES, HEAD_WIDTH), tl.float32)
        for first in range(0, tl.max(sees), KEYS):
            keys = first + tl.arange(0, KEYS)
            k = tile_at(base + HEAD_WIDTH, keys, stride_token, length)
            v = tile_at(base + 2 * HEAD_WIDTH, keys, stride_token, length)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * LOG2_SCALE
            s = tl.where(keys[None, :] < sees[:, None], s, float("-inf"))
            p = tl.exp2(s - row_lse[:, None])
            dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            dq = tl.dot((p * (dp - row_delta[:, None])).to(k.dtype), k, dq, input_precision=PRECISION)
        store_tile(grad_qkv + (start * heads + head) * PARTS, dq * SCALE, rows, heads * PARTS, length)


@triton.jit(do_not_specialize=[*VARYING, "tiles"])
def backward_keys(
    qkv, grad_out, lse, delta, grad_qkv, cu_seqlens, flags,
    tokens, heads, stride_token, flagged, all_causal, first_sequence, shorter, tiles,
    KEYS: tl.constexpr, QUERIES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The keys' and values' parts of grad_qkv, one tile of keys per program; scores are transposed, (KEYS, QUERIES)."""
    head, start, length, causal = sequence_of(
        tl.program_id(0) // tiles, cu_seqlens, flags, heads, tokens, flagged, all_causal, first_sequence
    )  # fmt: skip
    first_key = tl.program_id(0) % tiles * KEYS
    if length > shorter and first_key < length:
        base = qkv + start * stride_token + head * PARTS
        at_out = (start * heads + head) * HEAD_WIDTH
        at_row = head.to(tl.int64) * tokens + start
        keys = first_key + tl.arange(0, KEYS)
        k = tile_at(base + HEAD_WIDTH, keys, stride_token, length)
        v = tile_at(base + 2 * HEAD_WIDTH, keys, stride_token, length)
        dk = tl.zeros((KEYS, HEAD_WIDTH), tl.float32)
        dv = tl.zeros((KEYS, HEAD_WIDTH), tl.float32)
        # In a causal sequence, queries before the first key of this tile do not see it.
        for first in range(tl.where(causal, first_key // QUERIES * QUERIES, 0), length, QUERIES):
            rows = first + tl.arange(0, QUERIES)
            q = tile_at(base, rows, stride_token, length)
            do = tile_at(grad_out + at_out, rows, heads * HEAD_WIDTH, length)
            row_lse = tl.load(lse + at_row + rows, mask=rows < length, other=float("inf"))
            row_delta = tl.load(delta + at_row + rows, mask=rows < length, other=0.0)
            s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * LOG2_SCALE
            s = tl.where(keys[:, None] < visible(rows, length, causal)[None, :], s, float("-inf"))
            p = tl.exp2(s - row_lse[None, :])
            dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
            dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
            dk = tl.dot((p * (dp - row_delta[None, :])).to(q.dtype), q, dk, input_precision=PRECISION)
        grad_base = grad_qkv + (start * heads + head) * PARTS
        store_tile(grad_base + HEAD_WIDTH, dk * SCALE, keys, heads * PARTS, length)
        store_tile(grad_base + 2 * HEAD_WIDTH, dv, keys, heads * PARTS, length)
