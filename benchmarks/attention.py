"""Compares packed attention, forward and backward separately, with every PyTorch backend that can compute it.

    python benchmarks/attention.py

with the packages installed (`make install`), or with kernels/ on PYTHONPATH. On a GPU: checks every contestant against
float64, times them at the shapes of CLIP's towers, and writes results/attention_DEVICE.json, in under four minutes.
Without one: writes the kernels' predicted times on an H200 (prediction.py), to be compared with the first run there.

What is compared. Ours takes the projection's (T, H, 3, 64) and returns its gradient, as in training. The others get
separate contiguous queries, keys and values in the layout that suits them best and return three gradients, so they are
spared the copies that a packed projection would cost them; the gradient they get has the layout of their output, since
they would first copy any other. Packed captions: the backends take them padded to 77; `varlen`, PyTorch's built-in
FlashAttention-2, takes them packed. Images and captions together, as in the shared encoder, are one call of ours; the
others, which are causal or not for a whole call, take two. GB/s count each input and output once (forward 4 tensors of
the tokens, backward 8), TFLOP/s only the scores needed (causal: half), backward 2.5 times forward. Times are device
times, however long the host takes to queue a call; memory caches are cleared before each.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import sys
from collections.abc import Callable, Sequence
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
from growclip_kernels.packed_attention import SequenceGroup, Sequences, attend

HEADS = (6, 10, 16)  # of the smallest, a medium and the widest encoder of grown models
PICTURE, CONTEXT = 197, 77  # tokens
TOKENS = 200_000  # per batch, enough for many waves of programs
CAPABILITY = (9, 0)
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
CHECKED = 64  # sequences of each part compared with float64
TOLERANCE = 1e-2  # relative L2 distance of bf16 from float64


Gradients = tuple[Tensor, ...]


@dataclass(frozen=True)
class Part:
    """Sequences that are all causal or all bidirectional: their lengths, and an upper bound of these."""

    lengths: tuple[int, ...]
    longest: int
    causal: bool

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def scores(self) -> int:
        """Number of scores needed per head."""
        return sum(n * (n + 1) // 2 if self.causal else n * n for n in self.lengths)


@dataclass(frozen=True)
class Shape:
    """A batch of sequences, in parts that are causal or not."""

    name: str
    parts: tuple[Part, ...]

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    @property
    def sequences(self) -> int:
        return sum(len(part.lengths) for part in self.parts)


@dataclass(frozen=True)
class Contestant:
    """An attention implementation, with conversions between rows (T, H, 64) and its outputs' layout.

    Attributes:
        inputs: its inputs, which require gradients.
        attend: maps the inputs to the outputs.
        to_rows: converts outputs to rows.
        from_rows: converts rows to the outputs' layout.
        gradient_rows: converts the inputs' gradients to (T, H, 3, 64).
    """

    inputs: tuple[Tensor, ...]
    attend: Callable[..., tuple[Tensor, ...]]
    to_rows: Callable[[tuple[Tensor, ...]], Tensor]
    from_rows: Callable[[Tensor], tuple[Tensor, ...]]
    gradient_rows: Callable[[Gradients], Tensor]


def shapes() -> list[Shape]:
    """Images of ViT-B/16, captions of full length, captions of the built-in data, and images with as many of these."""
    captions = built_in_tokenizer()(built_in_captions(20_000)).cu_seqlens.diff().tolist()
    count = next(i for i in range(len(captions)) if sum(captions[:i]) >= TOKENS)
    pairs = next(i for i in range(len(captions)) if sum(captions[:i]) + PICTURE * i >= TOKENS)
    return [
        Shape("197", (Part((PICTURE,) * (TOKENS // PICTURE), PICTURE, False),)),
        Shape("77 causal", (Part((CONTEXT,) * (TOKENS // CONTEXT), CONTEXT, True),)),
        Shape("captions", (Part(tuple(captions[:count]), CONTEXT, True),)),
        Shape(
            "197 + captions",
            (Part((PICTURE,) * pairs, PICTURE, False), Part(tuple(captions[:pairs]), CONTEXT, True)),
        ),
    ]


def contestants(qkv: Tensor, shape: Shape) -> dict[str, Callable[[], Contestant]]:
    """Functions that create our contestant and PyTorch's for a shape, by name; qkv is (T, H, 3, 64)."""
    calls = ", two calls" if len(shape.parts) > 1 else ""

    def of_parts(make: Callable[[Tensor, Part], Contestant]) -> Contestant:
        parts = zip(qkv.detach().split([part.tokens for part in shape.parts]), shape.parts, strict=True)
        return _joined([make(rows, part) for rows, part in parts], [part.tokens for part in shape.parts])

    return {
        "ours": lambda: _ours(qkv, shape),
        f"varlen (torch's FlashAttention-2){calls}": lambda: of_parts(_varlen),
        **{
            f"sdpa {name}{calls}": lambda b=backend: of_parts(lambda rows, part: _sdpa(rows, part, b))
            for name, backend in BACKENDS.items()
        },
    }


def _ours(qkv: Tensor, shape: Shape) -> Contestant:
    groups = tuple(SequenceGroup(len(p.lengths), p.tokens, p.longest, p.causal) for p in shape.parts)
    lengths = list(itertools.chain.from_iterable(part.lengths for part in shape.parts))
    sequences = Sequences(_boundaries(torch.tensor(lengths, device=qkv.device)), groups)
    return Contestant(
        inputs=(qkv.detach().clone().requires_grad_(),),
        attend=lambda qkv: (attend(qkv, sequences),),
        to_rows=lambda outputs: outputs[0],
        from_rows=lambda rows: (rows,),
        gradient_rows=lambda gradients: gradients[0],
    )


def _varlen(qkv: Tensor, part: Part) -> Contestant:
    from torch.nn.attention.varlen import varlen_attn  # since torch 2.10

    cu_seqlens = _boundaries(torch.tensor(part.lengths, device=qkv.device))
    if "is_causal" in inspect.signature(varlen_attn).parameters:  # torch 2.10; later versions take a window
        masked: dict[str, Any] = {"is_causal": part.causal}
    else:
        masked = {"window_size": (-1, 0) if part.causal else (-1, -1)}

    def varlen(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return (varlen_attn(q, k, v, cu_seqlens, cu_seqlens, part.longest, part.longest, **masked),)

    return Contestant(
        inputs=tuple(rows.contiguous().requires_grad_() for rows in qkv.unbind(2)),  # (T, H, 64) each
        attend=varlen,
        to_rows=lambda outputs: outputs[0],
        from_rows=lambda rows: (rows,),
        gradient_rows=lambda gradients: torch.stack(gradients, 2),
    )


def _sdpa(qkv: Tensor, part: Part, backend: SDPBackend) -> Contestant:
    heads, lengths = qkv.shape[1], torch.tensor(part.lengths, device=qkv.device)
    kept = (torch.arange(part.longest, device=qkv.device) < lengths[:, None]).flatten().nonzero().flatten()

    def padded(t: Tensor) -> Tensor:  # (T, H, 64) -> (B, H, L, 64)
        full = t.new_zeros(len(part.lengths) * part.longest, heads, 64).index_copy(0, kept, t)
        return full.view(-1, part.longest, heads, 64).transpose(1, 2).contiguous()

    def unpadded(t: Tensor) -> Tensor:
        return t.transpose(1, 2).reshape(-1, heads, 64)[kept]

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        with sdpa_kernel(backend):
            return (F.scaled_dot_product_attention(q, k, v, is_causal=part.causal),)

    return Contestant(
        inputs=tuple(padded(rows).requires_grad_() for rows in qkv.unbind(2)),
        attend=sdpa,
        to_rows=lambda outputs: unpadded(outputs[0]),
        from_rows=lambda rows: (padded(rows),),
        gradient_rows=lambda gradients: torch.stack([unpadded(gradient) for gradient in gradients], 2),
    )


def _joined(parts: Sequence[Contestant], tokens: Sequence[int]) -> Contestant:
    """A contestant that computes each part of a batch in a separate call, with three inputs and one output."""

    def attend(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(out for i, part in enumerate(parts) for out in part.attend(*inputs[3 * i : 3 * i + 3]))

    def from_rows(rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(out for part, own in zip(parts, rows.split(tokens), strict=True) for out in part.from_rows(own))

    def gradient_rows(gradients: Gradients) -> Tensor:
        return torch.cat([part.gradient_rows(gradients[3 * i : 3 * i + 3]) for i, part in enumerate(parts)])

    return Contestant(
        inputs=tuple(tensor for part in parts for tensor in part.inputs),
        attend=attend,
        to_rows=lambda outputs: torch.cat([p.to_rows((out,)) for p, out in zip(parts, outputs, strict=True)]),
        from_rows=from_rows,
        gradient_rows=gradient_rows,
    )


def _boundaries(lengths: Tensor) -> Tensor:
    return F.pad(lengths.cumsum(0), (1, 0)).int()


def errors(contestant: Contestant, qkv: Tensor, shape: Shape, weights: Tensor) -> tuple[float, float]:
    """Relative L2 distances of the output and the gradient from float64, on the first sequences of each part."""
    out = contestant.attend(*contestant.inputs)
    gradient = torch.autograd.grad(out, contestant.inputs, contestant.from_rows(weights))
    rows, gradient_rows = contestant.to_rows(tuple(o.detach() for o in out)), contestant.gradient_rows(gradient)
    begin = 0
    far, size = torch.zeros(2, 2, dtype=torch.float64)
    for part in shape.parts:
        start = begin
        for length in part.lengths[:CHECKED]:
            own = slice(start, start + length)
            exact = qkv[own].detach().double().requires_grad_()
            q, k, v = (t.transpose(0, 1) for t in exact.unbind(2))
            scores = q @ k.transpose(1, 2) / 8
            if part.causal:
                scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf)
            expected = (scores.softmax(-1) @ v).transpose(0, 1)
            (expected_gradient,) = torch.autograd.grad(expected, exact, weights[own].double())
            for i, (ours, theirs) in enumerate(((rows[own], expected), (gradient_rows[own], expected_gradient))):
                far[i] += (ours.double() - theirs).square().sum().item()
                size[i] += theirs.square().sum().item()
            start += length
        begin += part.tokens
    distance = (far / size).sqrt()
    return float(distance[0]), float(distance[1])


def measure(shape: Shape, heads: int, device: torch.device) -> list[dict[str, Any]]:
    """The rows of all contestants."""
    generator = torch.Generator(device).manual_seed(0)
    tokens = shape.tokens
    qkv = torch.randn(tokens, heads, 3, 64, device=device, generator=generator).bfloat16()
    weights = torch.randn(tokens, heads, 64, device=device, generator=generator).bfloat16()
    operations = 4 * 64 * heads * sum(part.scores for part in shape.parts)
    moved = tokens * heads * 64 * 2
    rows = []
    for name, make in contestants(qkv, shape).items():
        row: dict[str, Any] = {"shape": shape.name, "heads": heads, "sequences": shape.sequences}
        row |= {"contestant": name, "tokens": tokens}
        rows.append(row)
        try:
            contestant = make()
            row["error"], row["gradient_error"] = errors(contestant, qkv, shape, weights)
            if not max(row["error"], row["gradient_error"]) <= TOLERANCE:
                raise RuntimeError(f"differs from float64 by {row['error']:.1e} and {row['gradient_error']:.1e}")
            out = contestant.attend(*contestant.inputs)
            grad = tuple(torch.empty_like(o).copy_(g) for o, g in zip(out, contestant.from_rows(weights), strict=True))
            forward = common.median_ms(lambda c=contestant: c.attend(*c.inputs), device)
            backward = common.median_ms(
                lambda c=contestant, o=out, g=grad: torch.autograd.grad(o, c.inputs, g, retain_graph=True), device
            )
        except Exception as error:  # an unsupported shape, out of memory, or a wrong result: note it and continue
            row["failed"] = common.failure(error)
            continue
        row |= {"forward_ms": forward, "backward_ms": backward, "both_ms": forward + backward}
        row |= {"forward_gb_s": 4 * moved / forward / 1e6, "backward_gb_s": 8 * moved / backward / 1e6}
        row |= {"forward_tflop_s": operations / forward / 1e9, "backward_tflop_s": 2.5 * operations / backward / 1e9}
    ours = rows[0].get("both_ms")
    best = min((row["both_ms"] for row in rows[1:] if "both_ms" in row), default=None)
    if ours and best:
        rows[0]["times_best_other"] = best / ours
    return rows


def predictions() -> list[dict[str, Any]]:
    """Rows of the predicted times of our attention on an H200."""
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
            parts = [attention_seconds(list(part.lengths), heads, H200, used, CAPABILITY) for part in shape.parts]
            forward, backward = (sum(seconds) for seconds in zip(*parts, strict=True))
            row = {"shape": shape.name, "heads": heads, "sequences": shape.sequences, "tokens": shape.tokens}
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
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder for results")
    options = parser.parse_args()
    device = common.find_device()
    if device.type != "cuda":
        rows = predictions()
        path = options.results / "attention_predicted_nvidia-h200.json"
        path.write_text(json.dumps({"benchmark": "attention, predicted for an H200", "rows": rows}, indent=1) + "\n")
        print(common.markdown_table(rows, COLUMNS))
        print(f"\nThere is no GPU, so these are predictions ({path})")
        return
    limits = common.ceilings(device)
    rows: list[dict[str, Any]] = []
    for shape in shapes():
        for heads in HEADS:
            rows += measure(shape, heads, device)
            path = common.write_results("attention", rows, device, limits, folder=options.results)
    print(common.markdown_table(rows, COLUMNS))
    print(limits)
    print(path)


if __name__ == "__main__":
    main()
