"""Compares time and memory of the contrastive loss and its gradients with the usual implementations.

    python benchmarks/contrastive.py

with the packages installed (`make install`), or with kernels/ on PYTHONPATH. On a GPU: checks every contestant against
float64, times forward and backward together, and writes results/contrastive_DEVICE.json, in under four minutes. Without
one: writes the kernels' predicted times on an H200 (prediction.py), to be compared with the first run there.

What is compared, on bf16 features of one GPU with a learnable scale: `ours` (fused); the same with scores from a
library's products (`ours, chunked`); `eager` (the whole matrix and two cross entropies, as in most trainers); that
under torch.compile; and `eager in chunks` of rows, each recomputed in the backward pass. Where the matrix would not
fit, the contestants that need it are skipped. TFLOP/s count 8 n² d, the minimum without storing scores. `ours, sigmoid`
is the other loss, without competitors: 6 n² d.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own folder is there, not the repository

from benchmarks import common
from growclip_kernels import contrastive_loss, sigmoid_loss
from growclip_kernels.contrastive import torch_path

SIZES = (1536, 4096, 16384, 65536, 262144)
WIDTHS = (512, 768)
CHUNK = 4096  # rows per chunk of `eager in chunks`
SCALE, BIAS = 50.0, -20.0
CAPABILITY = (9, 0)
LOSS_TOLERANCE, TOLERANCE = 2e-3, 2e-2  # relative distances of bf16's value and gradients from float64's

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def eager(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    logits = (images @ texts.T).float() * scale
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def eager_in_chunks(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    def part(rows: Tensor, others: Tensor, scale: Tensor, start: int) -> Tensor:
        own = torch.arange(start, start + len(rows), device=rows.device)
        return F.cross_entropy((rows @ others.T).float() * scale, own, reduction="sum")

    total = images.new_zeros((), dtype=torch.float32)
    for rows, others in ((images, texts), (texts, images)):
        for start in range(0, len(rows), CHUNK):
            total = total + checkpoint(part, rows[start : start + CHUNK], others, scale, start, use_reentrant=False)
    return total / 2 / len(images)


class Chunked(torch.autograd.Function):
    """Our loss on one GPU with the chunked design, which dispatch does not choose."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        from growclip_kernels.contrastive import triton_path

        factor = scale.reshape(())
        row_lse, column_lse, diagonal = triton_path.log_sum_exp(images, texts, factor, 0, "chunked")
        ctx.save_for_backward(images, texts, factor, row_lse, column_lse)
        return ((row_lse + column_lse) / 2 - diagonal).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        from growclip_kernels.contrastive import triton_path

        images, *rest = ctx.saved_tensors
        d_images, d_texts, d_factor = triton_path.gradient(images, *rest, 0, "chunked")
        step = grad / len(images)
        return d_images.mul_(step).to(images.dtype), d_texts.mul_(step).to(images.dtype), (d_factor * step).reshape(1)


def contestants(n: int, device: torch.device) -> Iterator[tuple[str, Loss]]:
    """Yields the contestants by name, without those whose matrices would not fit."""
    yield "ours", contrastive_loss
    if device.type == "cuda":
        yield "ours, chunked", Chunked.apply
    yield "eager in chunks", eager_in_chunks
    whole = 5 * 4 * n * n  # bytes: the scores, their gradient and softmaxes in fp32, with copies
    if device.type == "cuda" and whole > torch.cuda.get_device_properties(device).total_memory:
        return
    yield "eager", eager
    if device.type == "cuda":
        yield "compiled", compiled()


def compiled() -> Loss:
    """`eager`, compiled for a single size, with the compilations for other sizes discarded."""
    torch.compiler.reset()
    return torch.compile(eager, dynamic=False)


def features(n: int, d: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Features of moderately similar pairs, as in training, and a scale.

    If pairs were more similar, the loss would nearly vanish, as a difference of two fp32 numbers around 20.
    """
    generator = torch.Generator(device).manual_seed(n + d)
    images = torch.randn(n, d, device=device, generator=generator)
    texts = images + 4 * torch.randn(n, d, device=device, generator=generator)
    scale = torch.tensor([SCALE], device=device)
    return tuple(
        t.requires_grad_() for t in (F.normalize(images, dim=1).bfloat16(), F.normalize(texts, dim=1).bfloat16(), scale)
    )


def exact(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Loss and gradients in float64, computed in blocks."""
    images, texts, scale = (t.detach().double() for t in inputs)
    factor = scale.reshape(())
    row_lse, column_lse, diagonal = torch_path.log_sum_exp(images, texts, factor, 0)
    gradients = torch_path.gradient(images, texts, factor, row_lse, column_lse, 0)
    return ((row_lse + column_lse) / 2 - diagonal).mean(), *(gradient / len(images) for gradient in gradients)


def exact_sigmoid(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same for the sigmoid loss, whose inputs are features, scale and bias."""
    images, texts, scale, bias = (t.detach().double() for t in inputs)
    results = torch_path.sigmoid(images, texts, scale.reshape(()), bias.reshape(()), 0, True)
    return tuple(result / len(images) for result in results)


def measure(n: int, d: int, device: torch.device) -> list[dict[str, Any]]:
    """The rows of all contestants."""
    inputs = features(n, d, device)
    expected = exact(inputs)
    rows = [measure_one(name, loss, inputs, expected, 8 * n * n * d) for name, loss in contestants(n, device)]
    for row in rows:
        if "ms" in row and "ms" in rows[0]:
            row["times_ours"] = row["ms"] / rows[0]["ms"]
    bias = torch.tensor([BIAS], device=device, requires_grad=True)
    inputs = *inputs, bias
    return [*rows, measure_one("ours, sigmoid", sigmoid_loss, inputs, exact_sigmoid(inputs), 6 * n * n * d)]


def measure_one(
    name: str, loss: Callable[..., Tensor], inputs: tuple[Tensor, ...], expected: tuple[Tensor, ...], operations: int
) -> dict[str, Any]:
    """The row of a contestant."""
    (n, d), device = inputs[0].shape, inputs[0].device
    row: dict[str, Any] = {"n": n, "d": d, "contestant": name}

    def both() -> tuple[Tensor, ...]:
        value = loss(*inputs)
        return value.detach(), *torch.autograd.grad(value, inputs)

    try:
        row["errors"] = [float((a.double() - b).norm() / b.norm()) for a, b in zip(both(), expected, strict=True)]
        if not (row["errors"][0] <= LOSS_TOLERANCE and max(row["errors"]) <= TOLERANCE):
            raise RuntimeError(f"differs from float64 by {', '.join(f'{error:.1e}' for error in row['errors'])}")
        memory = common.PeakMemory(device)
        both()
        row["peak_gb"] = memory.bytes / 1e9
        row["ms"] = common.median_ms(both, device)
        row["tflop_s"] = operations / row["ms"] / 1e9
    except Exception as error:  # out of memory, a kernel that does not compile, or a wrong result: note it, continue
        row["failed"] = common.failure(error)
    return row


def predictions() -> list[dict[str, Any]]:
    """Rows of the predicted time of our loss on an H200."""
    from benchmarks.prediction import H200, contrastive_seconds
    from growclip_kernels.contrastive.configurations import configurations
    from growclip_kernels.resources import compile_for

    used = {
        item.name: compile_for(item, CAPABILITY)
        for item in configurations(CAPABILITY)
        if item.name.endswith("bf16") and "sigmoid" not in item.name
    }
    forward, gradient = (used[f"contrastive fused {name}, bf16"] for name in ("log-sum-exp", "softmax gradient"))
    rows = []
    for d in WIDTHS:
        for n in SIZES:
            seconds = sum(contrastive_seconds(n, d, H200, forward, gradient))
            row = {"n": n, "d": d, "contestant": "ours, predicted", "ms": 1e3 * seconds}
            rows.append(row | {"tflop_s": 8 * n * n * d / seconds / 1e12})
    return rows


COLUMNS = {
    "n": ("n", "d"),
    "d": ("d", "d"),
    "contestant": ("", "s"),
    "ms": ("forward + backward ms", ".3f"),
    "tflop_s": ("TFLOP/s", ".0f"),
    "peak_gb": ("peak GB", ".3f"),
    "times_ours": ("× ours", ".2f"),
    "failed": ("", "s"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder for results")
    options = parser.parse_args()
    device = common.find_device()
    if device.type != "cuda":
        rows = predictions()
        path = options.results / "contrastive_predicted_nvidia-h200.json"
        content = {"benchmark": "contrastive, predicted for an H200", "rows": rows}
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(common.markdown_table(rows, COLUMNS))
        print(f"\nThere is no GPU, so these are predictions ({path})")
        return
    limits = common.ceilings(device)
    rows: list[dict[str, Any]] = []
    for d in WIDTHS:
        for n in SIZES:
            rows += measure(n, d, device)
            path = common.write_results("contrastive", rows, device, limits, folder=options.results)
    print(common.markdown_table(rows, COLUMNS))
    print(limits)
    print(path)


if __name__ == "__main__":
    main()
