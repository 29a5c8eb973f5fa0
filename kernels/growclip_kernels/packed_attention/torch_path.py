"""The PyTorch path of attention: scaled_dot_product_attention, one call per group of sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from growclip_kernels.packed_attention.sequences import HEAD_WIDTH, SequenceGroup, Sequences, groups_of


def attention(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, causal: bool | Tensor) -> Tensor:
    """`function.attention` for validated arguments."""
    if isinstance(causal, Tensor):
        groups = groups_of(cu_seqlens, causal)
    else:
        groups = (SequenceGroup(cu_seqlens.numel() - 1, qkv.shape[0], max_seqlen, causal),)
    return attend(qkv, Sequences(cu_seqlens, groups))


def attend(qkv: Tensor, sequences: Sequences) -> Tensor:
    """`function.attend` for validated arguments."""
    outputs, first, token = [], 0, 0
    for group in sequences.groups:  # images and captions differ in length: pad per group
        boundaries = sequences.cu_seqlens[first : first + group.sequences + 1]
        part = qkv[token : token + group.tokens]
        outputs.append(_attend_group(part, boundaries - token if token else boundaries, group))
        first, token = first + group.sequences, token + group.tokens
    if len(outputs) == 1:
        return outputs[0]
    return torch.cat(outputs) if outputs else qkv[:, :, 0]


def _attend_group(qkv: Tensor, cu_seqlens: Tensor, group: SequenceGroup) -> Tensor:
    sequences, tokens, max_seqlen, causal = group
    heads = qkv.shape[1]
    if tokens == 0:
        return qkv[:, :, 0]
    if tokens == sequences * max_seqlen:  # all of the same length
        return _dense(qkv.view(sequences, max_seqlen, heads, 3, HEAD_WIDTH), None, causal).reshape(qkv[:, :, 0].shape)
    lengths = cu_seqlens.diff().long()
    starts = torch.arange(sequences, device=qkv.device) * max_seqlen - cu_seqlens[:-1]
    rows = torch.arange(tokens, device=qkv.device) + starts.repeat_interleave(lengths, output_size=tokens)
    padded = qkv.new_zeros(sequences * max_seqlen, *qkv.shape[1:]).index_copy(0, rows, qkv)
    # Padding follows its sequence, so causal tokens never see it; only bidirectional ones need a mask.
    mask = None
    if not causal:
        mask = (torch.arange(max_seqlen, device=qkv.device) < lengths[:, None])[:, None, None, :]  # (B, 1, 1, L)
        mask = mask | (lengths == 0)[:, None, None, None]  # a row that sees nothing would be NaN
    out = _dense(padded.view(sequences, max_seqlen, heads, 3, HEAD_WIDTH), mask, causal)
    return out.reshape(sequences * max_seqlen, heads, HEAD_WIDTH).index_select(0, rows)


def _dense(qkv: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """qkv (B, L, H, 3, 64) -> (B, L, H, 64)."""
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))  # (B, H, L, 64) each
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2)
