"""Times LAMB's and AdamW's update of S4's shard, and measures the update's share of a training step.

    python benchmarks/optimizer.py                # on the GPU, or on the CPU if there is none

with the packages installed (`make install`), or with kernels/ on PYTHONPATH. Writes results/optimizer_DEVICE.json.
Takes a minute and, on the CPU, 6 GB.

The shard is that of a single rank: all of S4's 189 million elements, with weight, gradient and two moments of 4 bytes
each. It is updated as a whole, and restricted to a candidate, the leading rows and columns of each tensor. Before
anything is timed, the update is compared with float64 on a smaller model of the same kind. On a GPU, torch's fused
AdamW is timed too.

Bytes are those that the kernels must move (growclip_kernels/optimizer/kernels.py): AdamW reads four numbers per element
and writes three; so does LAMB's first pass, while its second reads two and writes one. Tables and partial sums are
counted as well. The prediction for an H200 divides these by the copy rate measured on one (prediction.py); S4's step
there is predicted from its operations (growclip_ds/costs/flops.py) at the rate of large products.

The share of a step is measured for a small model of S4's kind on the CPU, for S4 on a GPU: the time of the optimizer's
`step` as a share of a whole training iteration with ZeRO 2, in one process. It is skipped if a package that training
needs is missing.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own folder is there, not the repository

from benchmarks import common
from benchmarks.captions import built_in_captions, built_in_tokenizer
from benchmarks.prediction import H200
from benchmarks.presets import PRESETS
from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.costs.flops import forward_flops, training_flops
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.optim.leading_box import leading_box
from growclip_kernels.dispatch import uses_triton
from growclip_kernels.optimizer import Buffers, Region, Regions, adamw, lamb_apply, lamb_direction, torch_path
from growclip_kernels.optimizer import trust_ratios as ratios_of
from growclip_kernels.optimizer.regions import BLOCK

S4, CANDIDATE = PRESETS["gpu"].largest, Architecture(4, 14, 9, 9, 6, 6)
SMALL, SMALLER = PRESETS["cpu-small"].largest, Architecture(1, 4, 2, 2, 1, 2)
HYPER = {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 1e-2}
LR = 1e-3
STEP = 3
NUMBERS = {"AdamW": 4 + 3, "LAMB": 4 + 3 + 2 + 1}  # read and written per element
PASSES = {"AdamW": 1, "LAMB": 2}
TABLE_BYTES = 6 * 8 + 4 + 5 * 4  # read by a program: its span's row, that row's index, its tensor's numbers
PRODUCTS = 650e12  # operations per second that a step's products are assumed to reach on an H200
COLUMNS = {
    "update": ("update", "s"),
    "of": ("of", "s"),
    "path": ("path", "s"),
    "million": ("million elements", ".1f"),
    "bytes_an_element": ("bytes per element", ".2f"),
    "ms": ("ms", ",.2f"),
    "gb_s": ("GB/s", ",.1f"),
    "predicted_h200_ms": ("H200 ms, predicted", ".2f"),
    "of_predicted_step": ("of an S4 step there", ".2%"),
}
SHARES = {
    "update": ("optimizer", "s"),
    "step_ms": ("step ms", ",.1f"),
    "ms": ("its step ms", ",.1f"),
    "share": ("share", ".1%"),
}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    device = common.find_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    for update in ("AdamW", "LAMB"):
        check(update, device)
    whole = regions(S4, S4, ModelSizes())
    sampled = regions(S4, CANDIDATE, ModelSizes())
    step_ms = predicted_step_ms()
    rows = []
    for of, where in (("S4", whole), ("a candidate in S4", sampled)):
        rows += [measure(update, of, where, whole.end, device, step_ms) for update in ("AdamW", "LAMB")]
    if device.type == "cuda":
        rows.append(fused_adamw(whole.end, device))
    shares, missing = shares_of_a_step(device)
    print(common.markdown_table(rows, COLUMNS), common.markdown_table(shares, SHARES), sep="\n\n")
    notes = [
        *missing,
        f"S4's step on an H200, 512 pairs, is predicted to take {step_ms:.0f} ms: its operations at "
        f"{PRODUCTS / 1e12:.0f} TFLOP/s; the update is that of a single rank, and several ranks share it",
        f"shares: {'S4, 512 pairs' if device.type == 'cuda' else f'{SMALL}, 8 pairs'}, ZeRO 2, one process",
    ]
    print(common.write_results("optimizer", [*rows, *shares], device, common.ceilings(device), notes))


def regions(largest: Architecture, sampled: Architecture, sizes: ModelSizes) -> Regions:
    """The regions of a candidate in the largest model's shard, in which tensors are concatenated."""
    boxes, found, offset = sampled.parameter_shapes(sizes), [], 0
    for name, shape in largest.parameter_shapes(sizes).items():
        numel = torch.Size(shape).numel()
        spans = leading_box(shape, boxes[name], 0, numel) if name in boxes else ()
        found.append(Region(tuple(s._replace(offset=s.offset + offset) for s in spans), is_matrix=len(shape) > 1))
        offset += numel
    return Regions(found)


def buffers(size: int, device: torch.device) -> Buffers:
    generator = torch.Generator(device).manual_seed(0)
    made = [torch.randn(size, device=device, generator=generator) for _ in range(4)]
    return Buffers(made[0], made[1].mul_(0.01), made[2].mul_(0.01), made[3].square_().mul_(1e-4))


def apply(update: str, shard: Buffers, where: Regions, path: Any = None) -> None:
    """Applies one update with the implementation chosen for the device, or with `path` if given."""
    steps = [STEP] * len(where)
    chosen = path.adamw if path else adamw, path.lamb_direction if path else lamb_direction
    if update == "AdamW":
        chosen[0](shard, where, steps, LR, **HYPER)
    else:
        ratios = ratios_of(chosen[1](shard, where, steps, **HYPER))
        (path.lamb_apply if path else lamb_apply)(shard, where, ratios.to(shard.weight.dtype), LR)


def check(update: str, device: torch.device) -> None:
    """Compares the update with one in float64.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    where = regions(SMALL, SMALLER, PRESETS["cpu-small"].sizes)
    shard = buffers(max(where.end, 1 << 20), device)
    exact = Buffers(*(buffer.cpu().double() for buffer in shard))
    apply(update, shard, where)
    apply(update, exact, where, torch_path)
    for name in ("weight", "exp_avg", "exp_avg_sq"):
        found, right = getattr(shard, name).cpu().double(), getattr(exact, name)
        error = float((found - right).norm() / right.norm())
        if not error < 1e-6:
            raise RuntimeError(f"{update}: {name} is off by {error:.1e}")


def bytes_moved(update: str, where: Regions) -> int:
    """Bytes moved by the kernels: numbers, tables, and for LAMB two partial sums per block, written and read."""
    spans = [span for region in where.regions for span in region.spans]
    blocks = sum(-(-span.rows * span.columns // BLOCK) for span in spans)
    elements = sum(span.rows * span.columns for span in spans)
    sums = 2 * 2 * 4 * blocks if update == "LAMB" else 0
    return 4 * NUMBERS[update] * elements + PASSES[update] * TABLE_BYTES * blocks + sums


def predicted_step_ms() -> float:
    """Predicted duration of a step of S4 with 512 pairs on an H200, in milliseconds."""
    sizes, pairs = ModelSizes(), PRESETS["gpu"].batch_size
    tokenizer = built_in_tokenizer(8192, sizes.context_length)
    lengths = tokenizer(built_in_captions(pairs)).cu_seqlens.diff().tolist()
    forward = sum(forward_flops(S4, sizes, length) for length in lengths) + 2 * pairs**2 * sizes.embed_dim
    operations = training_flops(forward)
    return 1000 * operations / PRODUCTS


def measure(update: str, of: str, where: Regions, size: int, device: torch.device, step_ms: float) -> dict[str, Any]:
    shard = buffers(size, device)
    ms = common.median_ms(functools.partial(apply, update, shard, where), device)
    elements = sum(span.rows * span.columns for region in where.regions for span in region.spans)
    moved = bytes_moved(update, where)
    predicted = 1000 * moved / H200.copy
    return {
        "update": update,
        "of": of,
        "path": "Triton" if uses_triton(device) else "PyTorch",
        "million": elements / 1e6,
        "bytes_an_element": moved / elements,
        "ms": ms,
        "gb_s": moved / ms / 1e6 if uses_triton(device) else None,
        "predicted_h200_ms": predicted,
        "of_predicted_step": predicted / step_ms,
    }


def fused_adamw(size: int, device: torch.device) -> dict[str, Any]:
    shard = buffers(size, device)
    weight = torch.nn.Parameter(shard.weight)
    weight.grad = shard.gradient
    optimizer = torch.optim.AdamW([weight], lr=LR, fused=True)
    ms = common.median_ms(optimizer.step, device)
    return {"update": "AdamW", "of": "S4", "path": "torch, fused", "million": size / 1e6, "ms": ms}


def shares_of_a_step(device: torch.device) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of the optimizers' shares, or a note that names the missing package."""
    try:
        from growclip_ds.distributed.rendezvous import init_distributed

        init_distributed()
        shares = [share(update, device) for update in ("AdamW", "LAMB")]
    except ImportError as error:  # the other figures need neither DeepSpeed nor the packages of the configuration
        return [], [f"shares of a step were not measured: {error}"]
    torch.distributed.destroy_process_group()
    return shares, []


def share(update: str, device: torch.device) -> dict[str, Any]:
    """The optimizer `step`'s share of a training iteration."""
    from benchmarks.steps import Batch
    from growclip_ds.optim import AdamW, Lamb
    from growclip_ds.training.engine import Engine
    from growclip_ds.training.iteration import train_iteration

    preset = PRESETS["gpu" if device.type == "cuda" else "cpu-small"]
    config = {
        "train_micro_batch_size_per_gpu": preset.batch_size,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": 2},
        "bf16": {"enabled": preset.bf16},
    }
    make = {"AdamW": AdamW, "LAMB": Lamb}[update]
    engine = Engine(
        lambda: GrowCLIP(preset.largest, **vars(preset.sizes)), lambda named: make([p for _, p in named]), config
    )
    batch, seconds = Batch(preset, device), []
    engine.optimizer.step = timed(engine.optimizer.step, seconds, device)

    def iteration() -> None:
        train_iteration(engine, [(batch.images, batch.packed)], LR)

    for _ in range(3):
        iteration()
    seconds.clear()
    whole = common.iteration_seconds(iteration, 7, device)
    del engine.optimizer.step  # the wrapper would keep the engine alive
    engine.destroy()
    step_ms, ms = 1000 * statistics.median(whole), 1000 * statistics.median(seconds)
    return {"update": update, "step_ms": step_ms, "ms": ms, "share": ms / step_ms}


def timed(function: Callable[[], None], seconds: list[float], device: torch.device) -> Callable[[], None]:
    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> None:
        common.synchronize(device)
        start = time.perf_counter()
        function(*arguments, **keywords)
        common.synchronize(device)
        seconds.append(time.perf_counter() - start)

    return call


if __name__ == "__main__":
    main()
