"""The Triton path of attention as operators that autograd, torch.compile and fake tensors know."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from growclip_kernels.devices import capability_of
from growclip_kernels.packed_attention.looping import backward_keys, backward_queries, forward_looping
from growclip_kernels.packed_attention.on_chip import backward_on_chip, forward_on_chip
from growclip_kernels.packed_attention.plan import Launch, OnChip, Tile, plan


def attention_triton(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, causal: bool | Tensor) -> Tensor:
    """The Triton path of `attention`."""
    flags, all_causal = (causal, False) if isinstance(causal, Tensor) else (None, causal)
    return attention_forward(qkv, cu_seqlens, max_seqlen, flags, all_causal)[0]


@torch.library.custom_op("growclip::attention_forward", mutates_args=())
def attention_forward(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, flags: Tensor | None, all_causal: bool
) -> tuple[Tensor, Tensor]:
    """out (T, H, 64) and, for the backward pass, lse (H, T): log2 of the sums of exponentials."""
    qkv = _ready(qkv)
    tokens, heads = qkv.shape[:2]
    out, lse = qkv.new_empty(tokens, heads, qkv.shape[3]), qkv.new_empty(heads, tokens, dtype=torch.float32)
    programs = (cu_seqlens.numel() - 1) * heads
    with torch.cuda.device_of(qkv):
        for launch, shared in _launches(qkv, cu_seqlens, max_seqlen, flags, all_causal):
            tiles, arguments = launch.tiles, (qkv, out, lse, *shared)
            if isinstance(tiles, OnChip):
                forward_on_chip[(programs,)](*arguments, **_options(tiles.forward))
            else:
                count = triton.cdiv(max_seqlen, tiles.forward.queries)
                options = _options(tiles.forward, PRECISION=tiles.precision)
                forward_looping[(programs * count,)](*arguments, count, **options)
    return out, lse


@torch.library.custom_op("growclip::attention_backward", mutates_args=())
def attention_backward(
    grad_out: Tensor, qkv: Tensor, out: Tensor, lse: Tensor,
    cu_seqlens: Tensor, max_seqlen: int, flags: Tensor | None, all_causal: bool,
) -> Tensor:  # fmt: skip
    """The gradient in qkv, (T, H, 3, 64)."""
    qkv, grad_out = _ready(qkv), grad_out.contiguous()
    grad_qkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    programs = (cu_seqlens.numel() - 1) * qkv.shape[1]
    with torch.cuda.device_of(qkv):
        for launch, shared in _launches(qkv, cu_seqlens, max_seqlen, flags, all_causal):
            tiles = launch.tiles
            if isinstance(tiles, OnChip):
                options = _options(tiles.backward, TRANSPOSED=tiles.transposed)
                backward_on_chip[(programs,)](qkv, out, grad_out, lse, grad_qkv, *shared, **options)
                continue
            delta = torch.empty_like(lse)
            arguments = (grad_out, lse, delta, grad_qkv, *shared)
            count = triton.cdiv(max_seqlen, tiles.backward_queries.queries)
            options = _options(tiles.backward_queries, PRECISION=tiles.precision)
            backward_queries[(programs * count,)](qkv, out, *arguments, count, **options)
            count = triton.cdiv(max_seqlen, tiles.backward_keys.keys)
            options = _options(tiles.backward_keys, PRECISION=tiles.precision)
            backward_keys[(programs * count,)](qkv, *arguments, count, **options)
    return grad_qkv


def _ready(qkv: Tensor) -> Tensor:
    """With no gap except between tokens, which may be any: the leading heads of a wider tensor stay where they are."""
    return qkv if qkv.stride()[1:] == (qkv.shape[2] * qkv.shape[3], qkv.shape[3], 1) else qkv.contiguous()


def _options(tile: Tile, **constexprs: Any) -> dict[str, Any]:
    sizes = {"QUERIES": tile.queries, "KEYS": tile.keys}
    return {**sizes, **constexprs, "num_warps": tile.warps, "num_stages": tile.stages}


def _launches(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, flags: Tensor | None, all_causal: bool
) -> list[tuple[Launch, tuple]]:
    """What to launch, and the arguments that all kernels share."""
    (tokens, heads), sequences = qkv.shape[:2], cu_seqlens.numel() - 1
    if not tokens:
        return []
    # Without flags the pointer is not followed; it has to be of the same type.
    pointer = cu_seqlens.view(torch.uint8) if flags is None else flags.view(torch.uint8)
    launches = plan(tokens, sequences, max_seqlen, qkv.dtype, capability_of(qkv.device))
    common = (cu_seqlens, pointer, tokens, heads, qkv.stride(0), int(flags is not None), int(all_causal))
    return [(launch, (*common, launch.shorter)) for launch in launches]


@attention_forward.register_fake
def _(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, flags: Tensor | None, all_causal: bool
) -> tuple[Tensor, Tensor]:
    tokens, heads, _, width = qkv.shape
    return qkv.new_empty(tokens, heads, width), qkv.new_empty(heads, tokens, dtype=torch.float32)


@attention_backward.register_fake
def _(grad_out: Tensor, qkv: Tensor, *_: object) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    qkv, cu_seqlens, max_seqlen, flags, all_causal = inputs
    ctx.save_for_backward(qkv, *output, cu_seqlens, flags)
    ctx.max_seqlen, ctx.all_causal = max_seqlen, all_causal


def _backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple:
    qkv, out, lse, cu_seqlens, flags = ctx.saved_tensors
    grad = attention_backward(grad_out, qkv, out, lse, cu_seqlens, ctx.max_seqlen, flags, ctx.all_causal)
    return grad, None, None, None, None


attention_forward.register_autograd(_backward, setup_context=_save)
