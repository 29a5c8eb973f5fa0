"""Compares whole training steps of GrowCLIP, at ViT-B/16's size and at S4's, with those of other libraries' CLIPs.

    python benchmarks/train_step.py                 # one process: on the GPU, or small on the CPU if there is none
    deepspeed --num_gpus 8 benchmarks/train_step.py
    DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 deepspeed --num_accelerators 2 benchmarks/train_step.py

with the packages installed (`make install`), or with kernels/ on PYTHONPATH. Writes results/train_step_DEVICE.json
(train_step_N_ranks_DEVICE.json with several) and, with --profile, train_step_profile_MODEL_DEVICE.txt. Takes two
minutes on two CPU cores. GROWCLIP_KERNELS=torch times GrowCLIP without its Triton kernels; give that its own --results.

What is compared. GrowCLIP is trained by `train_iteration` on the engine of ds_configs/zeroN.json, as in a run. At
ViT-B/16's size it is CLIP ViT-B/16 with a convolution before its patches, on packed captions. The others get the same
images and captions, the latter as rows of the full context length, and are trained by the same engine with the same
settings and AdamW; and, in one process, also in the usual way: fp32 weights, autocast, PyTorch's fused AdamW. GrowCLIP
with all captions of full length shows how much of the difference is not due to packing. S4 uses LAMB, as in the paper.
Nothing is compiled, and activations are not checkpointed.

Before anything is timed, the first loss must be near that of guessing, ln n, and a step must change every matrix.

Utilisation is based on operations counted from sizes (growclip_ds/costs/flops.py), for the captions' tokens without
padding, so that for the same captions the work is the same for all, except for the stem. Time is the median wall-clock
time of iterations, on the slowest rank; memory is that of the largest rank. Shares are measured in further iterations,
timed by part (parts.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own folder is there, not the repository

from benchmarks import common
from benchmarks.contenders import find_contenders
from benchmarks.parts import BACKWARD, LOSS, OTHER_FORWARD, REST, STEP
from benchmarks.presets import PRESETS
from benchmarks.steps import PARTS, Contest, Step, of_ranks
from growclip_ds.architecture import Architecture
from growclip_ds.distributed import is_main, world_size
from growclip_ds.distributed.rendezvous import init_distributed
from growclip_ds.optim import AdamW, Lamb

PROFILED_OPERATORS = 40

COLUMNS = {
    "model": ("model", "s"),
    "captions": ("captions", "s"),
    "trained_by": ("trained by", "s"),
    "samples_per_second": ("samples/s", ",.1f"),
    "ms": ("ms/step", ",.1f"),
    "times_transformers": ("x transformers", ".2f"),
    "tflop_s": ("TFLOP/s per rank", ".3g"),
    "mfu": ("MFU", ".1%"),
    "of_measured_rate": ("of measured rate", ".1%"),
    "peak_gib": ("peak GiB", ".2f"),
}
SHARE_COLUMNS = {
    **{key: COLUMNS[key] for key in ("model", "captions", "trained_by")},
    **{part: (part, ".1%") for part in (*PARTS, OTHER_FORWARD, LOSS, BACKWARD, STEP, REST)},
}
NOTES = (
    "samples/s of all ranks; TFLOP/s of useful operations; MFU: relative to the data sheet's dense bf16 rate; "
    "peak GiB: weights, gradients, optimizer state and activations of the largest rank",
    "x transformers: samples/s relative to transformers' CLIPModel on the same engine at the same ZeRO stage",
    "loss: forward and backward pass of GrowCLIP's loss; a contender's is part of its other forward and its backward",
)


def profile_to(path: Path, device: torch.device) -> Callable[[Step], None]:
    """A function that profiles a step and writes its operators to a file, sorted by own time on the device."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    sort_by = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"

    def profile(step: Step) -> None:
        with torch.profiler.profile(activities=activities) if is_main() else nullcontext() as profiler:
            step()
            common.synchronize(device)
        if profiler is not None:
            operators = profiler.key_averages()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(operators.table(sort_by, row_limit=PROFILED_OPERATORS, max_name_column_width=70))
            print(f"wrote {path}")

    return profile


def compare(rows: list[dict[str, Any]], compared: Architecture) -> None:
    """Adds samples/s relative to transformers' CLIPModel at the same ZeRO stage to the rows of the same size."""
    theirs = {row["stage"]: row["samples_per_second"] for row in rows if row["model"].startswith("transformers")}
    for row in rows:
        if row["stage"] is not None and row.get("architecture") in (None, str(compared)):
            row["times_transformers"] = row["samples_per_second"] / theirs[row["stage"]]


def main() -> None:
    start = time.perf_counter()
    options = _parser().parse_args()
    init_distributed()
    device = common.find_device()
    preset = PRESETS[options.preset or ("gpu" if device.type == "cuda" else "cpu-small")]
    sizes = {"batch_size": options.batch_size, "iterations": options.iterations}
    preset = replace(preset, **{name: value for name, value in sizes.items() if value is not None})
    name = of_ranks("train_step")

    def profile(model: str, stage: int) -> Callable[[Step], None] | None:
        path = common.result_path(f"{name}_profile_{common.slug(model)}", device, ".txt", options.results)
        return profile_to(path, device) if options.profile and stage == options.stages[0] else None

    contest = Contest(preset, device)
    if is_main():
        print(json.dumps(common.machine(device) | contest.ceilings))
    contenders = find_contenders(preset.compared, preset.sizes, contest.batch.end_of_text)
    compared, largest = preset.names
    for stage in options.stages:
        contest.growclip(compared, preset.compared, AdamW, stage, True, profile(compared, stage))
        for contender in contenders:
            contest.contender_on_engine(contender, stage)
        contest.growclip(largest, preset.largest, Lamb, stage, False, profile(largest, stage))
    if world_size() == 1:
        for contender in contenders:
            contest.contender_alone(contender)
    compare(contest.rows, preset.compared)
    if is_main():
        length = sum(contest.batch.lengths) / len(contest.batch.lengths)
        notes = (*NOTES, f"{preset}; captions are of {length:.1f} tokens on average")
        path = common.write_results(name, contest.rows, device, contest.ceilings, notes, options.results)
        print(f"\n{common.markdown_table(contest.rows, COLUMNS)}\n")
        shares = [row | row["shares"] for row in contest.rows if "shares" in row]
        print(f"{common.markdown_table(shares, SHARE_COLUMNS)}\n\n{path}, {time.perf_counter() - start:.0f} s")
    torch.distributed.destroy_process_group()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Times training steps; see the top of the file.")
    parser.add_argument("--preset", choices=PRESETS, help="models and batch (default: chosen by the device)")
    parser.add_argument(
        "--stages", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3], help="ZeRO stages to run"
    )
    parser.add_argument("--batch-size", type=int, help="pairs per rank (default: the preset's)")
    parser.add_argument("--iterations", type=int, help="timed iterations of each model (default: the preset's)")
    parser.add_argument("--profile", action="store_true", help="also write each model's operators by time")
    parser.add_argument("--results", type=Path, default=common.RESULTS, metavar="DIR", help="folder for results")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # LOCAL_RANK says the same
    return parser


if __name__ == "__main__":
    main()
