"""`attention` and `attend`: validate their arguments and dispatch to the device's implementation."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from growclip_kernels.dispatch import uses_triton
from growclip_kernels.packed_attention import torch_path
from growclip_kernels.packed_attention.sequences import HEAD_WIDTH, Sequences

TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def attention(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, causal: bool | Tensor = False) -> Tensor:
    """softmax(q kᵀ / √64) v within each sequence.

    `cu_seqlens` is validated once per tensor object, for which the host waits for the GPU, and not at all under
    torch.compile, during CUDA graph capture, and in the recomputation of activation checkpointing. The PyTorch path
    also reads `causal` flags in every call. `attend` never waits.

    Args:
        qkv: (T, H, 3, 64), the packed tokens of all sequences, with the queries, keys and values of each head. May be
            the leading heads of a wider tensor.
        cu_seqlens: (B + 1,) int32, the cumulative sequence lengths, from 0 to T.
        max_seqlen: length of the longest sequence, or an upper bound of it.
        causal: whether to apply a causal mask; (B,) booleans set it per sequence.

    Returns:
        (T, H, 64).

    Raises:
        ValueError: a shape, type, device or boundary is not as described above.
    """
    _check(qkv, cu_seqlens, causal)
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() == -1:  # -1: in no backward pass
        check_boundaries(cu_seqlens, qkv.shape[0], max_seqlen)
    return _path(qkv).attention(qkv, cu_seqlens, max_seqlen, causal)


def attend(qkv: Tensor, sequences: Sequences) -> Tensor:
    """`attention` within sequences whose boundaries are known to be valid: the host never waits for the device.

    Args:
        qkv: (T, H, 3, 64), as for `attention`.
        sequences: the boundaries of the T tokens, on the same device.

    Returns:
        (T, H, 64).

    Raises:
        ValueError: a shape, type or device is not as described above, or numbers of tokens or sequences differ.
    """
    _check(qkv, sequences.cu_seqlens)
    if sequences.tokens != qkv.shape[0]:
        raise ValueError(f"qkv has {qkv.shape[0]} tokens, but the sequences have {sequences.tokens}")
    count, bounded = sum(group.sequences for group in sequences.groups), sequences.cu_seqlens.numel() - 1
    if count != bounded:
        raise ValueError(f"groups have {count} sequences, but cu_seqlens has the boundaries of {bounded}")
    return _path(qkv).attend(qkv, sequences)


def _path(qkv: Tensor) -> ModuleType:
    """The implementation: the Triton kernels where they support the type, else PyTorch."""
    if qkv.dtype in TRITON_DTYPES and uses_triton(qkv.device):
        from growclip_kernels.packed_attention import triton_path  # not every machine has Triton

        return triton_path
    return torch_path


def _check(qkv: Tensor, cu_seqlens: Tensor, causal: bool | Tensor = False) -> None:
    if qkv.dim() != 4 or qkv.shape[2:] != (3, HEAD_WIDTH):
        raise ValueError(f"qkv must be (tokens, heads, 3, {HEAD_WIDTH}), not {tuple(qkv.shape)}")
    if not qkv.is_floating_point():
        raise ValueError(f"qkv must be of a floating-point type, not {qkv.dtype}")
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1 or cu_seqlens.dtype != torch.int32:
        shape = tuple(cu_seqlens.shape)
        raise ValueError(f"cu_seqlens must be (sequences + 1,) int32, not {shape} {cu_seqlens.dtype}")
    given = [("cu_seqlens", cu_seqlens)]
    if isinstance(causal, Tensor):
        if causal.shape != (cu_seqlens.numel() - 1,) or causal.dtype != torch.bool:
            raise ValueError(
                f"causal must have one flag per sequence ({cu_seqlens.numel() - 1}), bool, not {tuple(causal.shape)} "
                f"{causal.dtype}"
            )
        given.append(("causal", causal))
    for name, tensor in given:
        if tensor.device != qkv.device:
            raise ValueError(f"{name} is on {tensor.device}, but qkv is on {qkv.device}; move it there")


# Of each validated cu_seqlens: (its version, tokens, longest sequence).
_checked: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def check_boundaries(cu_seqlens: Tensor, tokens: int, max_seqlen: int) -> None:
    """Validates the boundaries of sequences, once per tensor object; on a GPU, this synchronises.

    Args:
        cu_seqlens: (B + 1,) int32, the cumulative sequence lengths.
        tokens: T, number of tokens of all sequences.
        max_seqlen: upper bound of the length of a sequence.

    Raises:
        ValueError: they do not begin with 0 or end with `tokens`, decrease, or are further apart than `max_seqlen`.
    """
    version = 0 if cu_seqlens.is_inference() else cu_seqlens._version
    known = _checked.get(cu_seqlens)
    if known is None or known[:2] != (version, tokens):
        if cu_seqlens.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        known = version, tokens, _longest(cu_seqlens, tokens)
        _checked[cu_seqlens] = known
    if known[2] > max_seqlen:
        raise ValueError(f"max_seqlen is {max_seqlen}, but cu_seqlens has a sequence of {known[2]} tokens")


def _longest(cu_seqlens: Tensor, tokens: int) -> int:
    """Validates the boundaries and returns the length of the longest sequence, with one transfer from the device."""
    lengths = cu_seqlens.diff()
    none = lengths.new_zeros(1)
    first, last, shortest, longest = torch.stack(
        [cu_seqlens[0], cu_seqlens[-1], torch.cat([lengths, none]).min(), torch.cat([lengths, none]).max()]
    ).tolist()
    if (first, last) != (0, tokens):
        raise ValueError(f"cu_seqlens must begin with 0 and end with the number of tokens, {tokens}: {first} … {last}")
    if shortest < 0:
        raise ValueError("cu_seqlens must not decrease: it holds the start of each sequence and the end of the last")
    return longest
