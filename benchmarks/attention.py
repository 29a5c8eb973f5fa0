"""Times packed attention, forward and backward apart, beside every backend of PyTorch's that can do the same.

    python benchmarks/attention.py

with the packages installed (`make install`), or with kernels/ on PYTHONPATH. On a GPU: checks every contestant against
float64, times them at the shapes of CLIP's towers, and writes results/attention_DEVICE.json, in under four minutes.
Without one: writes what the kernels should take on an H200 (prediction.py), for the first run there to be held against.

What is compared. Ours takes and gives back the projection's (T, H, 3, 64) as training does. The others get separate
contiguous queries, keys and values in the layout they like best and give three gradients, so they are spared the
copies that a packed projection would cost them. Packed captions: the backends take them padded to 77, `varlen` (flash)
packed. GB/s count each input and output once (forward 4 tensors of the tokens, backward 8), TFLOP/s only scores that
are asked for (causal: half), backward 2.5 times forward. Memory caches are cleared between calls.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own folder is there, not the repository

from benchmarks import common
from benchmarks.captions import built_in_captions, built_in_tokenizer
from growclip_kernels import attention

HEADS = (6, 10, 16)  # of the smallest, a middle and the widest encoder that is grown
CONTEXT = 77
TOKENS = 400_000 // max(HEADS)  # times heads: enough programs for many waves
CAPABILITY = (9, 0)
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
TOLERANCE = 1e-2  # relative L2 distance of bf16 from float64


@dataclass(frozen=True)
class Shape:
    """Sequences to attend: their lengths, and whether they are causal."""

    name: str
    lengths: tuple[int, ...]
    causal: bool

    @property
    def scores(self) -> int:
        """Those asked for, of a head."""
        return sum(n * (n + 1) // 2 if self.causal else n * n for n in self.lengths)


@dataclass(frozen=True)
class Contestant:
    """A way to attend: makes the output of its inputs, and takes rows (T, H, 64) to its output's layout and back."""

    name: str
    inputs: tuple[Tensor, ...]
    attend: Callable[..., Tensor]
    to_rows: Callable[[Tensor], Tensor]
    from_rows: Callable[[Tensor], Tensor]
    gradient_rows: Callable[[tuple[Tensor, ...]], Tensor]


def shapes() -> list[Shape]:
    """Pictures of ViT-B/16, full captions, and captions as they come, some 400,000 tokens over the heads each."""
    captions = built_in_tokenizer()(built_in_captions(20_000)).cu_seqlens.diff().tolist()
    count = next(i for i in range(len(captions)) if sum(captions[:i]) >= 8 * TOKENS)
    return [
        Shape("197", (197,) * (8 * TOKENS // 197), False),
        Shape("77 causal", (CONTEXT,) * (8 * TOKENS // CONTEXT), True),
        Shape("captions", tuple(captions[:count]), True),
    ]


def contestants(qkv: Tensor, shape: Shape) -> Iterator[Contestant]:
    """Ours and those that PyTorch has for the shape; qkv (T, H, 3, 64)."""
    heads = qkv.shape[1]
    lengths = torch.tensor(shape.lengths, device=qkv.device)
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).int()
    longest = CONTEXT if shape.causal else max(shape.lengths)
    packed = (qkv.detach().clone().requires_grad_(),)

    def ours(qkv: Tensor) -> Tensor:
        return attention(qkv, cu_seqlens, longest, shape.causal)

    def as_is(rows: Tensor) -> Tensor:
        return rows

    yield Contestant("ours", packed, ours, as_is, as_is, lambda gradients: gradients[0])

    parts = tuple(part.contiguous().requires_grad_() for part in qkv.detach().unbind(2))  # (T, H, 64) each
    try:
        from torch.nn.attention.varlen import varlen_attn

        window = (-1, 0) if shape.causal else (-1, -1)

        def varlen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, window_size=window)

        yield Contestant("varlen (flash)", parts, varlen, as_is, as_is, lambda gradients: torch.stack(gradients, 2))
    except ImportError as error:
        print(f"varlen (flash) is left out: {error}")

    kept = (torch.arange(longest, device=qkv.device) < lengths[:, None]).flatten().nonzero().flatten()

    def padded(t: Tensor) -> Tensor:  # (T, H, 64) -> (B, H, L, 64)
        full = t.new_zeros(len(shape.lengths) * longest, heads, 64).index_copy(0, kept, t)
        return full.view(-1, longest, heads, 64).transpose(1, 2).contiguous()

    def unpadded(t: Tensor) -> Tensor:
        return t.transpose(1, 2).reshape(-1, heads, 64)[kept]

    def gradient_rows(gradients: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([unpadded(gradient) for gradient in gradients], 2)

    dense = tuple(padded(part.detach()).requires_grad_() for part in parts)
    for name, backend in BACKENDS.items():

        def sdpa(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=shape.causal)

        yield Contestant(f"sdpa {name}", dense, sdpa, unpadded, padded, gradient_rows)


def errors(contestant: Contestant, qkv: Tensor, shape: Shape, weights: Tensor) -> tuple[float, float]:
    """Relative distances of output and gradient from float64, on the first sequences."""
    out = contestant.attend(*contestant.inputs)
    gradient = torch.autograd.grad(out, contestant.inputs, contestant.from_rows(weights))
    rows, gradient_rows = contestant.to_rows(out.detach()), contestant.gradient_rows(gradient)
    count = 64
    start = 0
    far, size = torch.zeros(2, 2, dtype=torch.float64)
    for length in shape.lengths[:count]:
        part = slice(start, start + length)
        exact = qkv[part].detach().double().requires_grad_()
        q, k, v = (t.transpose(0, 1) for t in exact.unbind(2))
        scores = q @ k.transpose(1, 2) / 8
        if shape.causal:
            scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf)
        expected = (scores.softmax(-1) @ v).transpose(0, 1)
        (expected_gradient,) = torch.autograd.grad(expected, exact, weights[part].double())
        for i, (ours, theirs) in enumerate(((rows[part], expected), (gradient_rows[part], expected_gradient))):
            far[i] += (ours.double() - theirs).square().sum().item()
            size[i] += theirs.square().sum().item()
        start += length
    distance = (far / size).sqrt()
    return float(distance[0]), float(distance[1])


def measure(shape: Shape, heads: int, device: torch.device) -> list[dict[str, Any]]:
    """A row for each contestant."""
    generator = torch.Generator(device).manual_seed(0)
    tokens = sum(shape.lengths)
    qkv = torch.randn(tokens, heads, 3, 64, device=device, generator=generator).bfloat16()
    weights = torch.randn(tokens, heads, 64, device=device, generator=generator).bfloat16()
    rows = []
    for contestant in contestants(qkv, shape):
        row: dict[str, Any] = {"shape": shape.name, "heads": heads, "sequences": len(shape.lengths)}
        row |= {"contestant": contestant.name, "tokens": tokens}
        rows.append(row)
        try:
            row["error"], row["gradient_error"] = errors(contestant, qkv, shape, weights)
            if not max(row["error"], row["gradient_error"]) <= TOLERANCE:
                raise RuntimeError(f"wrong: {row['error']:.1e} and {row['gradient_error']:.1e} from float64")
        except RuntimeError as reason:  # a backend that cannot, out of memory, or a wrong result: say so, go on
            row["failed"] = str(reason).splitlines()[0][:80]
            continue
        grad = contestant.from_rows(weights)
        out = contestant.attend(*contestant.inputs)
        forward = common.median_ms(lambda c=contestant: c.attend(*c.inputs), device)
        backward = common.median_ms(
            lambda c=contestant, o=out, g=grad: torch.autograd.grad(o, c.inputs, g, retain_graph=True), device
        )
        operations, moved = 4 * 64 * shape.scores * heads, tokens * heads * 64 * 2
        row |= {"forward_ms": forward, "backward_ms": backward, "both_ms": forward + backward}
        row |= {"forward_gb_s": 4 * moved / forward / 1e6, "backward_gb_s": 8 * moved / backward / 1e6}
        row |= {"forward_tflop_s": operations / forward / 1e9, "backward_tflop_s": 2.5 * operations / backward / 1e9}
    ours = rows[0].get("both_ms")
    best = min((row["both_ms"] for row in rows[1:] if "both_ms" in row), default=None)
    if ours and best:
        rows[0]["times_best_other"] = best / ours
    return rows


def predictions() -> list[dict[str, Any]]:
    """What ours should take on an H200."""
    from benchmarks.prediction import H200, attention_seconds
    from growclip_kernels.packed_attention.configurations import configurations
    from growclip_kernels.resources import compile_for

    used = {
        (int(item.name.split("to ")[1].split(",")[0]), item.name.split()[1]): compile_for(item, CAPABILITY)
        for item in configurations(CAPABILITY)
        if " to " in item.name and item.name.endswith("bf16")
    }
    rows = []
    for shape in shapes():
        for heads in HEADS:
            forward, backward = attention_seconds(list(shape.lengths), heads, H200, used, CAPABILITY)
            row = {"shape": shape.name, "heads": heads, "sequences": len(shape.lengths), "tokens": sum(shape.lengths)}
            moved = row["tokens"] * heads * 64 * 2
            row |= {"contestant": "ours, predicted", "forward_ms": 1e3 * forward, "backward_ms": 1e3 * backward}
            row |= {"both_ms": 1e3 * (forward + backward), "forward_gb_s": 4 * moved / forward / 1e9}
            rows.append(row | {"backward_gb_s": 8 * moved / backward / 1e9})
    return rows


COLUMNS = {
    "shape": ("tokens", "s"),
    "heads": ("heads", "d"),
    "contestant": ("", "s"),
    "forward_ms": ("forward ms", ".3f"),
    "backward_ms": ("backward ms", ".3f"),
    "forward_gb_s": ("GB/s", ".0f"),
    "backward_gb_s": ("GB/s", ".0f"),
    "forward_tflop_s": ("TFLOP/s", ".0f"),
    "backward_tflop_s": ("TFLOP/s", ".0f"),
    "times_best_other": ("best other / ours", ".2f"),
    "failed": ("", "s"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder to write to")
    options = parser.parse_args()
    device = common.find_device()
    if device.type != "cuda":
        rows = predictions()
        path = options.results / "attention_predicted_nvidia-h200.json"
        path.write_text(json.dumps({"benchmark": "attention, predicted for an H200", "rows": rows}, indent=1) + "\n")
        print(common.markdown_table(rows, COLUMNS))
        print(f"\nThere is no GPU here: these are predictions ({path})")
        return
    limits = common.ceilings(device)
    rows = [row for shape in shapes() for heads in HEADS for row in measure(shape, heads, device)]
    print(common.markdown_table(rows, COLUMNS))
    print(limits)
    print(common.write_results("attention", rows, device, limits, folder=options.results))


if __name__ == "__main__":
    main()
