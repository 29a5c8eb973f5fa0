"""The PyTorch path of attention: scaled_dot_product_attention over runs of sequences of one causality."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from growclip_kernels.packed_attention.sequences import Run

HEAD_WIDTH = 64


def attention_torch(qkv: Tensor, cu_seqlens: Tensor, runs: Sequence[Run]) -> Tensor:
    """The PyTorch path of `attention`, of its arguments checked: (T, H, 3, 64) -> (T, H, 64)."""
    outputs, sequence, token = [], 0, 0
    for run in runs:  # pictures and captions differ: pad each run to its own longest
        boundaries = cu_seqlens[sequence : sequence + run.sequences + 1]
        part = qkv[token : token + run.tokens]
        outputs.append(_attend(part, boundaries - token if token else boundaries, run.max_seqlen, run.causal))
        sequence, token = sequence + run.sequences, token + run.tokens
    if len(outputs) == 1:
        return outputs[0]
    return torch.cat(outputs) if outputs else qkv[:, :, 0]


def _attend(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, causal: bool) -> Tensor:
    sequences, (tokens, heads) = cu_seqlens.numel() - 1, qkv.shape[:2]
    if tokens == 0:
        return qkv[:, :, 0]
    if tokens == sequences * max_seqlen:  # all of one length
        return _dense(qkv.view(sequences, max_seqlen, heads, 3, HEAD_WIDTH), None, causal).reshape(qkv[:, :, 0].shape)
    lengths = cu_seqlens.diff().long()
    starts = torch.arange(sequences, device=qkv.device) * max_seqlen - cu_seqlens[:-1]
    rows = torch.arange(tokens, device=qkv.device) + starts.repeat_interleave(lengths, output_size=tokens)
    padded = qkv.new_zeros(sequences * max_seqlen, *qkv.shape[1:]).index_copy(0, rows, qkv)
    # Behind its sequence, padding is in no causal token's sight; only the other kind needs a mask.
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
