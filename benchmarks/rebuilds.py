"""Rebuilds GrowCLIP's engine repeatedly in one process, as growth steps do, and reports the memory left each time.

    python benchmarks/rebuilds.py                   # one process: S4 on the GPU, or a small S4 on the CPU
    deepspeed --num_gpus 8 benchmarks/rebuilds.py

with the packages installed (`make install`), or with kernels/ on PYTHONPATH. Each engine loads its weights, trains for
three iterations, returns its weights and is destroyed. Writes results/rebuilds_DEVICE.json
(rebuilds_N_ranks_DEVICE.json with several ranks): figures after each engine, the largest of any rank.
`tests/training/test_engine.py` asserts on small engines that tensors, files, threads and resident memory are released.

Device memory is what PyTorch's allocator has handed out (`allocated`) and what it holds from the driver (`reserved`);
on the CPU there is only resident memory.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own folder is there, not the repository

from benchmarks import common
from benchmarks.presets import PRESETS
from benchmarks.steps import LEARNING_RATE, Contest, of_ranks
from growclip_ds import distributed
from growclip_ds.architecture import Architecture
from growclip_ds.distributed.rendezvous import init_distributed
from growclip_ds.optim import Lamb
from growclip_ds.training.iteration import train_iteration

ITERATIONS = 3  # from the second on, ZeRO 3 prefetches in the order of the first
BATCH_SIZE = 32  # pairs per rank
COLUMNS = {
    "engine": ("engine", "d"),
    "peak_mib": ("peak MiB", ",.1f"),
    "allocated_mib": ("allocated after MiB", ",.2f"),
    "reserved_mib": ("reserved after MiB", ",.1f"),
    "resident_mib": ("resident after MiB", ",.1f"),
    "seconds": ("s", ".1f"),
}


def rebuild(contest: Contest, architecture: Architecture, stage: int) -> dict[str, float]:
    """Builds, trains and destroys one engine; returns the memory left afterwards, the largest of any rank."""
    start, memory, device = time.perf_counter(), common.PeakMemory(contest.device), contest.device
    engine = contest.engine(architecture, Lamb, stage)
    engine.load_masters(contest.initial(architecture).items())
    for _ in range(ITERATIONS):
        train_iteration(engine, [(contest.batch.images, contest.batch.packed)], LEARNING_RATE)
    for _name, _tensor in engine.masters(lambda _: 0):
        pass
    peak = memory.bytes
    engine.destroy()
    del engine, _tensor
    left = {"peak_mib": peak, "resident_mib": common.resident_bytes()}
    if device.type == "cuda":
        allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        left |= {"allocated_mib": allocated, "reserved_mib": reserved}
    left = {name: count / 2**20 for name, count in left.items()} | {"seconds": time.perf_counter() - start}
    everywhere = distributed.all_gather_object(left)
    return {name: max(rank[name] for rank in everywhere) for name in left}


def main() -> None:
    options = _parser().parse_args()
    init_distributed()
    device = common.find_device()
    preset = replace(PRESETS["gpu" if device.type == "cuda" else "cpu-small"], batch_size=options.batch_size)
    contest, rows = Contest(preset, device), []
    for stage in options.stages:
        of_stage: list[dict[str, Any]] = []
        for number in range(1, options.engines + 1):
            row = {"stage": stage, "engine": number, "architecture": str(preset.largest)}
            of_stage.append(row | rebuild(contest, preset.largest, stage))
        rows += of_stage
        if distributed.is_main():
            print(f"\nZeRO {stage}, {preset.names[1]}\n\n{common.markdown_table(of_stage, COLUMNS)}", flush=True)
    if distributed.is_main():
        notes = [re.sub(r"\s+", " ", __doc__.split("\n\n")[-1]).strip(), str(preset)]
        path = common.write_results(of_ranks("rebuilds"), rows, device, {}, notes, options.results)
        print(f"\n{path}")
    torch.distributed.destroy_process_group()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--stages", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3], help="ZeRO stages to run"
    )
    parser.add_argument("--engines", type=int, default=10, help="number of engines per stage")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="pairs per rank")
    parser.add_argument("--results", type=Path, default=common.RESULTS, metavar="DIR", help="folder for results")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # LOCAL_RANK says the same
    return parser


if __name__ == "__main__":
    main()
