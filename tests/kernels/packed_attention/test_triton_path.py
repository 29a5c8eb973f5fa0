"""The Triton path against softmax attention in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from growclip_kernels import attention
from growclip_kernels.packed_attention import SequenceGroup, Sequences, attend, triton_path
from tests.kernels.device import COMPILED, DEVICE, INTERPRETED, on_device, runs_kernels
from tests.kernels.packed_attention.cases import LENGTHS, boundaries, packed, reference, worst_error

pytestmark = runs_kernels

# A GPU's bf16 is allowed what benchmarks/attention.py allows it.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3 if INTERPRETED else 1e-2}
LOW = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _triton_on_poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is allocated holds NaN until it is written."""
    monkeypatch.setenv("GROWCLIP_KERNELS", "triton")
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def check(
    qkv: Tensor, lengths: list[int], causal: list[bool], bound: int | None = None, tolerance: float | None = None
) -> None:
    """Output and gradient of each sequence, against float64 of the same numbers. qkv is on the CPU."""
    flags = torch.tensor(causal, device=DEVICE) if len(set(causal)) > 1 else causal[0]
    there, cu_seqlens = on_device(qkv, boundaries(lengths))
    out = attention(there, cu_seqlens, bound or max(lengths), flags)
    compare(qkv, there, out, lengths, causal, tolerance or TOLERANCE[qkv.dtype])


def compare(qkv: Tensor, there: Tensor, out: Tensor, lengths: list[int], causal: list[bool], tolerance: float) -> None:
    """`out`, of `qkv` as it lies `there`, and its gradient."""
    generator = torch.Generator().manual_seed(len(lengths))
    weights = torch.randn(out.shape, generator=generator).to(qkv.dtype)
    (gradient,) = torch.autograd.grad(out, there, weights.to(DEVICE))
    exact = qkv.detach().double().requires_grad_()
    expected = reference(exact, lengths, causal)
    (expected_gradient,) = torch.autograd.grad(expected, exact, weights.double())
    assert out.dtype == gradient.dtype == qkv.dtype
    assert worst_error(out.detach().cpu(), expected.detach(), lengths) <= tolerance
    # A sequence of one token has no gradient in its query and key: all three parts are measured together.
    assert worst_error(gradient.cpu().flatten(1), expected_gradient.flatten(1), lengths) <= tolerance


def alternating(lengths: list[int]) -> list[bool]:
    return [i % 2 == 0 for i in range(len(lengths))]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("captions", [[3, 77, 1, 0], [40], []])
@pytest.mark.parametrize("pictures", [[50] * 3, [33, 5]])
def test_groups_of_pictures_and_captions(pictures: list[int], captions: list[int], dtype: torch.dtype) -> None:
    """As the shared encoder has them: a launch each, the second not at the beginning."""
    lengths = pictures + captions
    qkv, _ = packed(lengths, 2, dtype)
    (there,) = on_device(qkv)
    groups = [
        Sequences(boundaries(each).to(DEVICE), (SequenceGroup(len(each), sum(each), max(each, default=0), is_causal),))
        for each, is_causal in ((pictures, False), (captions, True))
    ]
    out = attend(there, groups[0].followed_by(groups[1]))
    causal = [False] * len(pictures) + [True] * len(captions)
    compare(qkv, there, out, lengths, causal, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_all_lengths_mixed(dtype):
    qkv, _ = packed(LENGTHS, 1, dtype)
    check(qkv, LENGTHS, alternating(LENGTHS))


def test_all_lengths_mixed_in_fp32():
    lengths = [length for length in LENGTHS if length < 200]
    qkv, _ = packed(lengths, 1, torch.float32)
    check(qkv, lengths, alternating(lengths))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
@pytest.mark.parametrize("first_causal", [False, True])
@pytest.mark.parametrize("every", [1, 2])
def test_all_lengths_in_either_causality(dtype, first_causal, every):
    lengths = [*LENGTHS, 1024]
    qkv, _ = packed(lengths, 2, dtype)
    check(qkv, lengths, [(i % every == 0) == first_causal for i in range(len(lengths))])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [20, 50, 77, 197])
def test_all_of_one_length(length, causal):
    """As pictures come: one launch, of the tile that fits."""
    qkv, _ = packed([length] * 2, 2, torch.bfloat16)
    check(qkv, [length] * 2, [causal] * 2)


@pytest.mark.parametrize(
    "heads", [1, 2, 3, 8, 16, *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 16) if n != 8)]
)
def test_any_number_of_heads(heads):
    qkv, _ = packed([5, 33, 18], heads, torch.bfloat16)
    check(qkv, [5, 33, 18], [True, False, True])


@pytest.mark.parametrize("bound", [33, 64, 77, 300])
def test_max_seqlen_may_be_an_upper_bound(bound):
    qkv, _ = packed([30, 33, 1], 1, torch.bfloat16)
    check(qkv, [30, 33, 1], [True, False, False], bound)


def test_sequences_of_nothing():
    qkv, cu_seqlens = packed([0, 40, 0, 3, 0], 2, torch.float16)
    out = attention(*on_device(qkv, cu_seqlens), 40).detach().cpu()
    expected = reference(qkv.detach().double(), [40, 3], [False] * 2)
    assert worst_error(out, expected, [40, 3]) <= TOLERANCE[qkv.dtype]
    empty = torch.empty(0, 2, 3, 64, dtype=torch.float16, device=DEVICE, requires_grad=True)
    assert attention(empty, boundaries([0, 0]).to(DEVICE), 7).shape == (0, 2, 64)
    assert attention(empty, boundaries([]).to(DEVICE), 0).shape == (0, 2, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["large", "identical", "opposed", "one key far ahead"])
def test_hard_scores(dtype, kind):
    """Scores of thousands, all alike, all far below zero, and one that takes all the weight."""
    lengths, (qkv, _) = [70, 31], packed([70, 31], 1, dtype)
    values = qkv.detach().clone()
    if kind == "large":
        values[:, :, :2] *= 30
    elif kind == "identical":
        values[:] = values[:1].clone()
    elif kind == "opposed":  # log-sum-exps near -600, where exp(score - 0) of a masked place would overflow
        values[:, :, 0], values[:, :, 1] = 9.0, -9.0
        values[:, :, 1] += torch.randn(values[:, :, 1].shape, generator=torch.Generator().manual_seed(1)) / 16
    else:
        values[5, :, 1] = 40 * values[3, :, 0]
    # fp32 has 2^-24 of a score, and all of that error shows in its exponential: allow what its products may lose.
    largest = float(torch.einsum("qhd,khd->hqk", values[:, :, 0].abs().double(), values[:, :, 1].abs().double()).max())
    lost = largest / 8 * 2**-24
    check(values.requires_grad_(), lengths, [False, True], tolerance=TOLERANCE[dtype] + 4 * lost)


def test_leading_heads_are_used_where_they_lie():
    wide, cu_seqlens = on_device(*packed([20, 7], 6, torch.bfloat16))
    leading = wide[:, :4]
    assert triton_path._ready(leading) is leading
    out = attention(leading, cu_seqlens, 20)
    torch.testing.assert_close(out, attention(leading.contiguous(), cu_seqlens, 20), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(out.sum(), wide)
    assert gradient[:, 4:].eq(0).all()
    assert gradient[:, :4].ne(0).any()


def test_any_other_layout_is_copied():
    qkv, cu_seqlens = on_device(*packed([20, 7], 2, torch.bfloat16))
    scattered = qkv.detach().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    ours = attention(scattered, cu_seqlens, 20)
    torch.testing.assert_close(ours, attention(qkv.detach(), cu_seqlens, 20), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("strided", "flagged"), [("flags", True), ("expanded flags", True), ("boundaries", True), ("boundaries", False)]
)
def test_flags_and_boundaries_may_have_gaps(strided, flagged):
    """As columns of a table have them, or one flag for all."""
    qkv, cu_seqlens = packed([20, 7, 40, 3], 1, torch.float32)
    flags = torch.tensor([True] * 4 if strided == "expanded flags" else [True, True, False, False])
    qkv, cu_seqlens, flags = on_device(qkv, cu_seqlens, flags)
    out = attention(qkv, cu_seqlens, 40, flags if flagged else True)
    (gradient,) = torch.autograd.grad(out.square().sum(), qkv)
    if strided == "boundaries":
        cu_seqlens = torch.stack([cu_seqlens, cu_seqlens.flip(0)], 1)[:, 0]
    elif strided == "flags":
        flags = torch.stack([flags, ~flags], 1)[:, 0]
    else:
        flags = torch.tensor([True, False, False, False], device=DEVICE)[:1].expand(4)
    ours = attention(qkv, cu_seqlens, 40, flags if flagged else True)
    assert torch.equal(ours, out)
    assert torch.equal(torch.autograd.grad(ours.square().sum(), qkv)[0], gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "ends",
    [[0, 5, -3, 9], [-7, 5, 9], [0, -(2**31), 2**31 - 1, -(2**31), 9], [0, 12, 15], [3, 20, 2], [-9, -4, 9]],
    ids=str,
)
def test_what_lies_beside_the_tokens_is_not_touched(monkeypatch, dtype, ends):
    """Where boundaries are not looked at, as under torch.compile, whatever they hold: other memory is none of it."""
    tokens, heads, gap, untouched = 9, 2, 1 << 14, 7.0
    allocated = []

    def guarded(shape: torch.Size, dtype: torch.dtype, beside: float) -> Tensor:
        size = math.prod(shape)
        memory = torch.full((size + 2 * gap,), beside, dtype=dtype, device=DEVICE)
        allocated.append((memory[:gap], memory[gap + size :]))
        return memory[gap : gap + size].view(shape).fill_(untouched)

    new_empty = Tensor.new_empty

    def new_guarded(tensor: Tensor, *shape: int, dtype: torch.dtype | None = None, **others: Any) -> Tensor:
        if others:  # of Triton's interpreter
            return new_empty(tensor, *shape, dtype=dtype, **others)
        return guarded(torch.Size(shape), dtype or tensor.dtype, untouched)

    qkv = guarded(torch.Size((tokens, heads, 3, 64)), dtype, torch.nan)
    grad_out = guarded(torch.Size((tokens, heads, 64)), dtype, torch.nan)
    for values in (qkv, grad_out):
        values.copy_(torch.randn(values.shape, generator=torch.Generator().manual_seed(0)))
    allocated.clear()
    monkeypatch.setattr(Tensor, "new_empty", new_guarded)
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, device: guarded(shape, dtype, untouched))
    monkeypatch.setattr(torch, "empty_like", lambda tensor: guarded(tensor.shape, tensor.dtype, untouched))
    cu_seqlens = torch.tensor(ends, dtype=torch.int32, device=DEVICE)
    groups = [len(ends) - 1, tokens, 300, 0]  # a bound for which there are kernels of all kinds
    out, lse = triton_path.attention_forward(qkv, cu_seqlens, None, groups)
    gradient = triton_path.attention_backward(grad_out, qkv, out, lse, cu_seqlens, None, groups)
    monkeypatch.undo()
    assert len(allocated) >= 3
    assert all(part.eq(untouched).all() for parts in allocated for part in parts)
    assert all(result.isfinite().all() for result in (out, lse, gradient))


def test_under_compile_and_checkpointing():
    qkv, cu_seqlens = on_device(*packed([20, 7], 2, torch.float32))
    flags = torch.tensor([False, True], device=DEVICE)
    sequences = Sequences(cu_seqlens, (SequenceGroup(1, 20, 20, False), SequenceGroup(1, 7, 7, True)))

    def thrice(x: Tensor) -> Tensor:
        out = attention(x, cu_seqlens, 20, flags)
        out = attend(x * out.unsqueeze(2), sequences)
        return attention(x * out.unsqueeze(2), cu_seqlens, 20, True).square().sum()

    (expected,) = torch.autograd.grad(thrice(qkv), qkv)
    compiled = torch.compile(thrice, fullgraph=True, backend="aot_eager")
    (of_compiled,) = torch.autograd.grad(compiled(qkv), qkv)
    (of_checkpointed,) = torch.autograd.grad(checkpoint(thrice, qkv, use_reentrant=False), qkv)
    torch.testing.assert_close(of_compiled, expected)
    torch.testing.assert_close(of_checkpointed, expected, rtol=0, atol=0)


def test_no_gradient_is_made_up_for_the_log_sum_exps():
    """It would be zeros, written anew in each backward pass."""
    operators = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
            operators.append(operator.name())
            return operator(*arguments, **(keywords or {}))

    qkv, cu_seqlens = on_device(*packed([3], 1, torch.bfloat16))
    out = attention(qkv, cu_seqlens, 3)
    with Record():
        torch.autograd.grad(out, qkv, torch.ones_like(out))
    assert "growclip::attention_backward" in operators
    assert not {"aten::zeros", "aten::zeros_like", "aten::new_zeros"} & set(operators)


def test_operators_are_what_torch_expects():
    qkv, cu_seqlens = on_device(*packed([20, 7], 2, torch.bfloat16))
    flags = torch.tensor([True, False], device=DEVICE)
    for others in ((flags, [2, 27, 20, 0]), (None, [1, 20, 20, 0, 1, 7, 7, 1])):
        arguments = (qkv, cu_seqlens, *others)
        torch.library.opcheck(triton_path.attention_forward, arguments)
        saved = [tensor.detach() for tensor in (qkv, *triton_path.attention_forward(*arguments))]
        torch.library.opcheck(triton_path.attention_backward, (saved[1], *saved, *arguments[1:]))


@pytest.mark.skipif(not COMPILED, reason="CUDA graphs are of GPUs and compiled kernels")
def test_captured_in_a_cuda_graph():
    lengths = [197, 20]
    qkv, cu_seqlens = on_device(*packed(lengths, 2, torch.bfloat16))

    def step() -> tuple[Tensor, Tensor]:
        out = attention(qkv, cu_seqlens, 197)
        return out, torch.autograd.grad(out, qkv, torch.ones_like(out))[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            expected = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for tensor in captured:
        tensor.fill_(torch.nan)
    graph.replay()
    for ours, theirs in zip(captured, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
