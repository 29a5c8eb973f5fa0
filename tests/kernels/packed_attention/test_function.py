"""The PyTorch path of packed attention against softmax attention in float64, and what `attention` refuses."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from growclip_kernels import attention
from growclip_kernels.packed_attention import SequenceGroup, Sequences, function
from growclip_kernels.packed_attention.sequences import groups_of
from tests.kernels.device import runs_kernels_on_ranks
from tests.kernels.packed_attention.cases import boundaries, packed, reference

RAGGED = [
    pytest.param([3, 1, 17, 0, 5], id="ragged"),
    pytest.param([4, 4, 4], id="equal"),
    pytest.param([1], id="one token"),
    pytest.param([77, 2, 64, 65], id="captions"),
    pytest.param([0, 0], id="nothing"),
]


@pytest.mark.parametrize("lengths", RAGGED)
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


def attend(**changed):
    arguments = {"qkv": torch.zeros(4, 2, 3, 64), "cu_seqlens": boundaries([1, 3]), "max_seqlen": 3, "causal": False}
    return attention(**{**arguments, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"qkv": torch.zeros(4, 2, 3, 32)}, "qkv must be"),
        ({"qkv": torch.zeros(4, 2, 64)}, "qkv must be"),
        ({"qkv": torch.zeros(4, 3, 2, 64)}, "qkv must be"),
        ({"qkv": torch.zeros(4, 2, 3, 64, dtype=torch.int32)}, "floating-point type, not torch.int32"),
        ({"qkv": torch.zeros(4, 2, 3, 64, device="meta")}, "cu_seqlens is on cpu, but qkv is on meta"),
        ({"cu_seqlens": torch.tensor([[0, 4]], dtype=torch.int32)}, "cu_seqlens must be"),
        ({"cu_seqlens": torch.tensor([0, 4])}, "cu_seqlens must be .* int32, not .* torch.int64"),
        ({"cu_seqlens": torch.tensor([], dtype=torch.int32)}, "cu_seqlens must be"),
        ({"cu_seqlens": torch.tensor([0, 3, 2, 4], dtype=torch.int32)}, "must not decrease"),
        (
            {"cu_seqlens": torch.tensor([1, 4], dtype=torch.int32)},
            "begin with 0 and end with the number of tokens, 4: 1 … 4",
        ),
        ({"cu_seqlens": boundaries([1, 2])}, "begin with 0 and end with the number of tokens, 4"),
        ({"cu_seqlens": boundaries([1, 4])}, "begin with 0 and end with the number of tokens, 4"),
        ({"max_seqlen": 2}, "max_seqlen is 2, but cu_seqlens has a sequence of 3 tokens"),
        ({"causal": torch.tensor([True])}, "one flag per sequence"),
        ({"causal": torch.tensor([1, 0])}, "one flag per sequence .* bool, not .* torch.int64"),
        ({"causal": torch.zeros(2, dtype=torch.bool, device="meta")}, "causal is on meta, but qkv is on cpu"),
    ],
)
@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_wrong_input_is_refused(monkeypatch, kernels, changed, message):
    monkeypatch.setenv("GROWCLIP_KERNELS", kernels)
    with pytest.raises(ValueError, match=message):
        attend(**changed)


def test_boundaries_are_not_looked_at_again_in_a_backward_pass(monkeypatch):
    """Activation checkpointing hands the recomputed forward pass new tensor objects."""
    looks = []
    longest = function._longest
    monkeypatch.setattr(function, "_longest", lambda *arguments: looks.append(arguments) or longest(*arguments))
    qkv, cu_seqlens = packed([3, 4], 1, torch.float64)
    runs = []

    def block(qkv, cu_seqlens):
        runs.append(cu_seqlens)
        return attention(qkv, cu_seqlens.detach(), 4)

    checkpoint(block, qkv, cu_seqlens, use_reentrant=True).sum().backward()
    assert (len(runs), len(looks)) == (2, 1)


def test_boundaries_are_looked_at_once_until_they_change(monkeypatch):
    looks = []
    longest = function._longest
    monkeypatch.setattr(function, "_longest", lambda *arguments: looks.append(arguments) or longest(*arguments))
    cu_seqlens = boundaries([1, 3])
    attend(cu_seqlens=cu_seqlens)
    attend(cu_seqlens=cu_seqlens, max_seqlen=4)
    assert len(looks) == 1
    with pytest.raises(ValueError, match="max_seqlen is 2"):
        attend(cu_seqlens=cu_seqlens, max_seqlen=2)
    cu_seqlens[1] = 5
    with pytest.raises(ValueError, match="must not decrease"):
        attend(cu_seqlens=cu_seqlens)
    assert len(looks) == 2


@pytest.mark.parametrize("kernels", ["torch", pytest.param("triton", marks=runs_kernels_on_ranks)])
@pytest.mark.parametrize("captions", [True, False])
@pytest.mark.parametrize("pictures", [[5, 5], []])
def test_known_sequences_are_attended_like_any(monkeypatch, kernels, pictures, captions):
    """Pictures and captions as the shared encoder has them; then captions that are not causal, so all are alike."""
    monkeypatch.setenv("GROWCLIP_KERNELS", kernels)
    lengths = [*pictures, 3, 9, 1]
    qkv, cu_seqlens = packed(lengths, 2, torch.float32)
    first = Sequences(boundaries(pictures), (SequenceGroup(len(pictures), sum(pictures), 5, False),))
    sequences = first.followed_by(Sequences(boundaries([3, 9, 1]), (SequenceGroup(3, 13, 9, captions),)))
    flags = torch.tensor([False] * len(pictures) + [captions] * 3)
    assert torch.equal(sequences.cu_seqlens, cu_seqlens)
    assert sequences.tokens == sum(lengths)
    out, expected = function.attend(qkv, sequences), attention(qkv, cu_seqlens, 9, flags if captions else False)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)  # padded to other lengths where all are alike
    with pytest.raises(ValueError, match=rf"qkv has {sum(lengths) - 1} tokens, but the sequences have {sum(lengths)}"):
        function.attend(qkv[1:], sequences)
    with pytest.raises(
        ValueError, match=rf"{len(lengths)} sequences, but cu_seqlens has the boundaries of {len(lengths) - 1}"
    ):
        function.attend(qkv, Sequences(cu_seqlens[1:], sequences.groups))


def test_groups_are_those_of_the_flags():
    flags = torch.tensor([True, False, False, True])
    groups = SequenceGroup(1, 3, 3, True), SequenceGroup(2, 5, 4, False), SequenceGroup(1, 0, 0, True)
    assert groups_of(boundaries([3, 1, 4, 0]), flags) == groups
    assert groups_of(boundaries([]), flags[:0]) == ()


def test_float64_is_for_the_pytorch_path(monkeypatch):
    monkeypatch.setenv("GROWCLIP_KERNELS", "triton")
    qkv, cu_seqlens = packed([5, 2], 1, torch.float64)
    torch.testing.assert_close(attention(qkv, cu_seqlens, 5), reference(qkv, [5, 2], [False] * 2))
