"""The Triton path of attention, as custom operators for autograd, torch.compile and fake tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from growclip_kernels.devices import capability_of
from growclip_kernels.packed_attention.looping import backward_keys, backward_queries, forward_looping
from growclip_kernels.packed_attention.on_chip import backward_on_chip, forward_on_chip
from growclip_kernels.packed_attention.plan import Looping, OnChip, Tile, plan
from growclip_kernels.packed_attention.sequences import SequenceGroup, Sequences


def attention(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, causal: bool | Tensor) -> Tensor:
    """`function.attention` for validated arguments."""
    flags, all_causal = (causal, False) if isinstance(causal, Tensor) else (None, causal)
    group = SequenceGroup(cu_seqlens.numel() - 1, qkv.shape[0], max_seqlen, all_causal)
    return attention_forward(qkv, cu_seqlens, flags, _numbers([group]))[0]


def attend(qkv: Tensor, sequences: Sequences) -> Tensor:
    """`function.attend` for validated arguments."""
    return attention_forward(qkv, sequences.cu_seqlens, None, _numbers(sequences.groups))[0]


def _numbers(groups: Sequence[SequenceGroup]) -> list[int]:
    """The groups' fields as a flat list of integers, which custom operators accept."""
    return [int(field) for group in groups for field in group]


@torch.library.custom_op("growclip::attention_forward", mutates_args=())
def attention_forward(
    qkv: Tensor, cu_seqlens: Tensor, flags: Tensor | None, groups: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The output (T, H, 64) and, for the backward pass, lse (H, T): log2 of each row's sum of exponentials.

    Args:
        flags: (B,) booleans that mark causal sequences in addition to those of causal groups; None for no others.
        groups: the groups of all sequences, as returned by `_numbers`.
    """
    qkv = _ready(qkv)
    tokens, heads = qkv.shape[:2]
    out, lse = qkv.new_empty(tokens, heads, qkv.shape[3]), qkv.new_empty(heads, tokens, dtype=torch.float32)
    with torch.cuda.device_of(qkv):
        for tiles, programs, longest, shared in _launches(qkv, cu_seqlens, flags, groups):
            arguments = (qkv, out, lse, *shared)
            if isinstance(tiles, OnChip):
                forward_on_chip[(programs,)](*arguments, **_options(tiles.forward))
            else:
                count = triton.cdiv(longest, tiles.forward.queries)
                options = _options(tiles.forward, PRECISION=tiles.precision)
                forward_looping[(programs * count,)](*arguments, count, **options)
    return out, lse


@torch.library.custom_op("growclip::attention_backward", mutates_args=())
def attention_backward(
    grad_out: Tensor, qkv: Tensor, out: Tensor, lse: Tensor,
    cu_seqlens: Tensor, flags: Tensor | None, groups: Sequence[int],
) -> Tensor:  # fmt: skip
    """The gradient of qkv, (T, H, 3, 64)."""
    qkv, grad_out = _ready(qkv), grad_out.contiguous()
    grad_qkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    with torch.cuda.device_of(qkv):
        for tiles, programs, longest, shared in _launches(qkv, cu_seqlens, flags, groups):
            if isinstance(tiles, OnChip):
                options = _options(tiles.backward, TRANSPOSED=tiles.transposed)
                backward_on_chip[(programs,)](qkv, out, grad_out, lse, grad_qkv, *shared, **options)
                continue
            delta = torch.empty_like(lse)
            arguments = (grad_out, lse, delta, grad_qkv, *shared)
            count = triton.cdiv(longest, tiles.backward_queries.queries)
            options = _options(tiles.backward_queries, PRECISION=tiles.precision)
            backward_queries[(programs * count,)](qkv, out, *arguments, count, **options)
            count = triton.cdiv(longest, tiles.backward_keys.keys)
            options = _options(tiles.backward_keys, PRECISION=tiles.precision)
            backward_keys[(programs * count,)](qkv, *arguments, count, **options)
    return grad_qkv


def _ready(qkv: Tensor) -> Tensor:
    """qkv, or a copy if a token's heads are not contiguous. Tokens may be strided, as those of leading heads are."""
    return qkv if qkv.stride()[1:] == (qkv.shape[2] * qkv.shape[3], qkv.shape[3], 1) else qkv.contiguous()


def _options(tile: Tile, **constexprs: Any) -> dict[str, Any]:
    sizes = {"QUERIES": tile.queries, "KEYS": tile.keys}
    return {**sizes, **constexprs, "num_warps": tile.warps, "num_stages": tile.stages}


class _Launch(NamedTuple):
    """A launch for the sequences of one group whose lengths fit the tiles.

    Attributes:
        programs: number of (sequence, head) pairs; a looping kernel runs several programs for each, one per tile.
        longest: upper bound of the length of the group's sequences.
        shared: arguments that all kernels take.
    """

    tiles: OnChip | Looping
    programs: int
    longest: int
    shared: tuple


def _launches(qkv: Tensor, cu_seqlens: Tensor, flags: Tensor | None, groups: Sequence[int]) -> Iterator[_Launch]:
    """Yields the launches, separately for each group: lengths are similar within a group but differ between groups."""
    tokens, heads = qkv.shape[:2]
    cu_seqlens = cu_seqlens.contiguous()
    # Without flags the pointer is not dereferenced, but must have the same type.
    pointer = (cu_seqlens if flags is None else flags.contiguous()).view(torch.uint8)
    first, numbers = 0, iter(groups)
    for sequences, in_group, longest, causal in zip(numbers, numbers, numbers, numbers, strict=True):
        common = (cu_seqlens, pointer, tokens, heads, qkv.stride(0), int(flags is not None), causal, first)
        if in_group:
            for launch in plan(in_group, sequences, longest, qkv.dtype, capability_of(qkv.device)):
                yield _Launch(launch.tiles, sequences * heads, longest, (*common, launch.shorter))
        first += sequences


@attention_forward.register_fake
def _(qkv: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    tokens, heads, width = qkv.shape[0], qkv.shape[1], qkv.shape[3]
    return qkv.new_empty(tokens, heads, width), qkv.new_empty(heads, tokens, dtype=torch.float32)


@attention_backward.register_fake
def _(grad_out: Tensor, qkv: Tensor, *_: object) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    qkv, cu_seqlens, flags, groups = inputs
    ctx.save_for_backward(qkv, *output, cu_seqlens, flags)
    ctx.set_materialize_grads(False)  # lse has no gradient; do not fill it with zeros
    ctx.groups = groups


def _backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple:
    qkv, out, lse, cu_seqlens, flags = ctx.saved_tensors
    return attention_backward(grad_out, qkv, out, lse, cu_seqlens, flags, ctx.groups), None, None, None


attention_forward.register_autograd(_backward, setup_context=_save)
