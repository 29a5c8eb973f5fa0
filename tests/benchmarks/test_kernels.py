"""The kernels' benchmarks go on when a contestant fails, and compare what they say."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import attention, common, contrastive

CPU, ROOT = torch.device("cpu"), Path(__file__).parents[2]
PICTURES = attention.Part((5, 5), 5, False)
SMALL = attention.Shape("5 + captions", (PICTURES, attention.Part((3, 1, 7), 8, True)))


class OutOfResources(Exception):
    """As Triton's: no RuntimeError."""


def refuse(*_: object) -> None:
    raise OutOfResources("shared memory\nand more")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call each, of a millisecond."""
    monkeypatch.setattr(common, "median_ms", lambda function, device: function() is None or 1.0)


def test_the_shared_encoders_batch_is_attended_by_all_that_can() -> None:
    rows = {row["contestant"]: row for row in attention.measure(SMALL, 2, CPU)}
    assert rows["ours"]["tokens"] == 21
    assert max(rows["ours"]["error"], rows["ours"]["gradient_error"]) < attention.TOLERANCE
    math = rows["sdpa math, two calls"]
    assert math["forward_tflop_s"] == rows["ours"]["forward_tflop_s"] > 0
    assert rows["ours"]["times_best_other"] == 1.0
    assert rows["varlen (torch's FlashAttention-2), two calls"]["failed"]  # there is no GPU
    assert set(attention.contestants(torch.zeros(10, 1, 3, 64), attention.Shape("5", (PICTURES,)))) == {
        "ours", "varlen (torch's FlashAttention-2)", "sdpa cudnn", "sdpa flash", "sdpa efficient", "sdpa math",
    }  # fmt: skip


def test_no_backend_has_to_copy_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the output of two lies (B, L, H, 64), whatever their queries do, and so has its gradient to."""
    timed: list[tuple[Any, Any]] = []
    grad, sdpa = torch.autograd.grad, torch.nn.functional.scaled_dot_product_attention

    def spy(outputs: Any, inputs: Any, gradients: Any, retain_graph: bool = False) -> Any:
        if retain_graph:
            timed.extend((o.stride(), g.stride()) for o, g in zip(outputs, gradients, strict=True))
        return grad(outputs, inputs, gradients, retain_graph=retain_graph)

    def as_on_a_gpu(*inputs: Any, **options: Any) -> torch.Tensor:
        return sdpa(*inputs, **options).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", as_on_a_gpu)
    attention.measure(SMALL, 2, CPU)
    assert len(timed) > 3
    assert all(output == gradient for output, gradient in timed)


@pytest.mark.slow
def test_the_shapes_are_of_200_000_tokens() -> None:
    shapes = attention.shapes()
    assert [shape.name for shape in shapes] == ["197", "77 causal", "captions", "197 + captions"]
    assert all(abs(shape.tokens - 200_000) < 300 for shape in shapes)
    pictures, captions = shapes[-1].parts
    assert len(pictures.lengths) == len(captions.lengths)


@pytest.mark.parametrize("version", ["2.10", "2.11"])
def test_varlen_is_told_of_causality_as_its_version_wants(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    asked: list[Any] = []

    def with_flag(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False):
        asked.append(is_causal)
        return q

    def with_window(q, k, v, cu_q, cu_k, max_q, max_k, *, window_size=(-1, -1)):
        asked.append(window_size == (-1, 0))
        return q

    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", with_flag if version == "2.10" else with_window)
    contestant = attention.contestants(torch.zeros(21, 2, 3, 64), SMALL)[
        "varlen (torch's FlashAttention-2), two calls"
    ]()
    assert [out.shape[0] for out in contestant.attend(*contestant.inputs)] == [10, 11]
    assert asked == [False, True]


def test_attention_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "attend", refuse)
    rows = {row["contestant"]: row for row in attention.measure(SMALL, 1, CPU)}
    assert rows["ours"]["failed"] == "OutOfResources: shared memory"
    assert "forward_ms" in rows["sdpa math, two calls"]


@pytest.mark.parametrize("width", contrastive.WIDTHS)
def test_pairs_of_the_loss_leave_something_to_compare(width: int) -> None:
    """As many as the smallest size has, of which the loss is smallest."""
    inputs = contrastive.features(contrastive.SIZES[0], width, CPU)
    loss = contrastive.exact(inputs)[0]
    assert loss > 1e-2
    assert abs(contrastive.eager(*inputs).double() / loss - 1) < contrastive.LOSS_TOLERANCE


def test_the_loss_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "contrastive_loss", refuse)
    monkeypatch.setattr(contrastive, "LOSS_TOLERANCE", 1.0)  # of few pairs, bf16 scores leave little
    monkeypatch.setattr(contrastive, "TOLERANCE", 1.0)
    rows = {row["contestant"]: row for row in contrastive.measure(24, 64, CPU)}
    assert rows["ours"]["failed"] == "OutOfResources: shared memory"
    assert rows["eager"]["ms"] == 1.0
    assert max(rows["ours, sigmoid"]["errors"]) < 2e-2


@pytest.mark.parametrize("name", ["attention", "contrastive"])
def test_results_are_written_as_they_come(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """What was measured before a benchmark is ended is not lost."""
    benchmark = {"attention": attention, "contrastive": contrastive}[name]
    gpu = torch.device("cuda")
    found = iter([[{"contestant": "ours"}], [{"contestant": "ours again"}]])
    monkeypatch.setattr(sys, "argv", [name, "--results", str(tmp_path)])
    monkeypatch.setattr(common, "find_device", lambda: gpu)
    monkeypatch.setattr(common, "ceilings", lambda device: {})
    monkeypatch.setattr(common, "machine", lambda device: {})
    monkeypatch.setattr(common, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(attention, "shapes", lambda: [SMALL])
    monkeypatch.setattr(benchmark, "measure", lambda *_: next(found))
    with pytest.raises(StopIteration):
        benchmark.main()
    (path,) = tmp_path.iterdir()
    assert [row["contestant"] for row in json.loads(path.read_text())["rows"]] == ["ours", "ours again"]


def test_each_size_is_compiled_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def record(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        sizes.append([size for value in inputs for size in value.shape])
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=record))
    for n in (8, 12):
        contrastive.compiled()(*contrastive.features(n, 16, CPU))
    assert sizes == [[8, 16, 8, 16, 1], [12, 16, 12, 16, 1]]
    assert all(type(size) is int for found in sizes for size in found)


WITHOUT_TRAINING = """
import sys
for name in ("deepspeed", "hjson", "simplejpeg", "pydantic"):
    sys.modules[name] = None
import torch
from benchmarks import optimizer
cpu = torch.device("cpu")
for update in ("AdamW", "LAMB"):
    optimizer.check(update, cpu)
rows, notes = optimizer.shares_of_a_step(cpu)
assert rows == [] and len(notes) == 1 and "deepspeed" in notes[0], notes
"""


def test_the_optimisers_update_is_timed_without_the_packages_of_training() -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRAINING], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
