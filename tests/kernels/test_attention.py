"""Packed attention against softmax attention written out in float64, a sequence at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from growclip_kernels import attention

LENGTHS = [
    pytest.param([3, 1, 17, 0, 5], id="ragged"),
    pytest.param([4, 4, 4], id="equal"),
    pytest.param([1], id="one token"),
    pytest.param([77, 2, 64, 65], id="captions"),
    pytest.param([0, 0], id="nothing"),
]


def reference(qkv: Tensor, lengths: list[int], causal: list[bool]) -> Tensor:
    outputs, start = [], 0
    for length, masked in zip(lengths, causal, strict=True):
        q, k, v = qkv[start : start + length].unbind(2)  # (L, H, 64) each
        scores = torch.einsum("qhd,khd->hqk", q, k) / 8
        if masked:
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
        start += length
    return torch.cat(outputs)


def packed(lengths: list[int], heads: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(sum(lengths) + heads)
    qkv = torch.randn(sum(lengths), heads, 3, 64, dtype=dtype, requires_grad=True)
    return qkv, torch.tensor([0, *lengths]).cumsum(0).int()


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", ["none", "all", "some", "alternating"])
def test_outputs_and_gradients(lengths, kind):
    sequences = len(lengths)
    causal = {
        "none": [False] * sequences,
        "all": [True] * sequences,
        "some": [i >= sequences // 2 for i in range(sequences)],
        "alternating": [i % 2 == 0 for i in range(sequences)],
    }[kind]
    qkv, cu_seqlens = packed(lengths, 2, torch.float64)
    flag = causal[0] if kind in ("none", "all") else torch.tensor(causal)
    bound = max(lengths) + 3 if kind == "all" else max(lengths)  # an upper bound will do
    out, expected = attention(qkv, cu_seqlens, bound, flag), reference(qkv, lengths, causal)
    torch.testing.assert_close(out, expected)
    weights = torch.randn_like(out)
    gradients = [torch.autograd.grad((o * weights).sum(), qkv)[0] for o in (out, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_lower_precision(dtype, tolerance):
    qkv, cu_seqlens = packed([5, 20, 9], 3, dtype)
    out = attention(qkv, cu_seqlens, 20, True)
    assert out.dtype == dtype
    expected = reference(qkv.detach().double(), [5, 20, 9], [True] * 3)
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


def test_leading_heads_of_a_wider_tensor():
    qkv, cu_seqlens = packed([6, 4], 4, torch.float64)
    torch.testing.assert_close(attention(qkv[:, :2], cu_seqlens, 6), attention(qkv, cu_seqlens, 6)[:, :2])


@pytest.mark.parametrize(
    ("shape", "boundaries", "causal", "message"),
    [
        ((4, 2, 3, 32), [0, 4], False, "qkv must be"),
        ((4, 2, 64), [0, 4], False, "qkv must be"),
        ((4, 2, 3, 64), [[0, 4]], False, "cu_seqlens must be"),
        ((4, 2, 3, 64), [0, 4], torch.tensor([True, False]), "one flag a sequence"),
    ],
)
def test_wrong_layouts_are_refused(shape, boundaries, causal, message):
    with pytest.raises(ValueError, match=message):
        attention(torch.zeros(shape), torch.tensor(boundaries, dtype=torch.int32), 4, causal)
