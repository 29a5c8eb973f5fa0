"""Opens and iterates an index of ten million synthetic samples, and measures its time and memory.

    python benchmarks/index.py [--samples 10_000_000] [--workers 4]

with the packages installed (`make install`). Writes results/index_10m_CPU.json. Takes half a minute; with 100 million
samples, about five minutes.

The tars are stubs; their index files, of 10,000 samples each, are written by the code that writes real ones. Then the
steps of a run are measured: the index files are found and checked against the tars, concatenated in shared memory, and
one epoch is iterated in training order, with each batch's rows looked up by data loading workers. Memory is as reported
by Linux: each process's own anonymous pages, and its proportional part of shared memory (the sum over the processes is
the total of the machine).
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own folder is there, not the repository

from benchmarks import common
from growclip_ds.data import index_file
from growclip_ds.data.order import TrainingOrder
from growclip_ds.data.scan import Scan
from growclip_ds.data.shards import ShardIndex, collect, open_shards

PER_SHARD = 10_000
BATCH = 4096
MIB = 2**20
COLUMNS = {
    "what": ("", ""),
    "seconds": ("s", ".2f"),
    "own_mib": ("own memory, MiB", ".1f"),
    "shared_mib": ("shared memory, its part, MiB", ".1f"),
}


class Rows:
    """A dataset that maps a batch of positions to a checksum of their rows, a shard name, and the process's memory."""

    def __init__(self, index: ShardIndex) -> None:
        self.index = index

    def __getitem__(self, positions: np.ndarray) -> tuple[int, str, dict[str, float]]:
        shards = {self.index.shard_of(position) for position in positions[:8].tolist()}
        return int(self.index.places[torch.from_numpy(positions)].sum()), max(shards), memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=4, help="data loading workers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), arguments.samples, arguments.workers)
    print(common.markdown_table(rows, COLUMNS))
    notes = [
        f"{arguments.samples:,} synthetic samples in shards of {PER_SHARD:,}; batches of {BATCH}",
        f"16 bytes per sample are {16 * arguments.samples / MIB:.1f} MiB",
        "own: anonymous pages; shared: proportional part of shared memory pages; the epoch's checksum was compared",
    ]
    print(common.write_results(f"index_{arguments.samples // 10**6}m", rows, torch.device("cpu"), {}, notes))


def measure(folder: Path, samples: int, workers: int) -> list[common.Row]:
    rows: list[common.Row] = []

    def note(what: str, start: float, **more: float) -> None:
        rows.append({"what": what, "seconds": time.perf_counter() - start} | (more or memory()))

    start = time.perf_counter()
    paths = make_up(folder, samples)
    note(f"{len(paths):,} index files written", start)
    start = time.perf_counter()
    opened = open_shards(paths)
    note("index files found and checked", start)
    start = time.perf_counter()
    index = collect(opened)
    note("joined", start)
    assert len(index) == samples

    start, order = time.perf_counter(), TrainingOrder(samples, BATCH, epochs=1, seed=0)
    seen = np.zeros(samples, dtype=bool)
    for iteration in range(order.iterations):
        seen[order.batch(iteration)] = True
    assert seen.all()
    note("order of one epoch, every sample once", start)
    del seen

    start = time.perf_counter()
    loader = DataLoader(
        Rows(index),
        batch_size=None,
        sampler=map(order.batch, range(order.iterations)),
        num_workers=workers,
        multiprocessing_context="forkserver",
        prefetch_factor=2,
    )
    total, last = 0, {}
    for number, (checksum, _, used) in enumerate(loader):
        total += checksum
        last[number % workers] = used  # workers deliver batches round-robin
        if number == order.iterations - 1:
            last["main"] = memory()
    assert total == sum(int(part.sum()) for part in index.places.split(BATCH))
    for who, used in last.items():
        note("one epoch looked up: trainer" if who == "main" else f"one epoch looked up: worker {who}", start, **used)
    shared = sum(used["shared_mib"] for used in last.values())
    note("trainer and workers together", start, shared_mib=shared, own_mib=sum(u["own_mib"] for u in last.values()))
    return rows


def make_up(folder: Path, samples: int) -> list[Path]:
    """Writes stub tars with the index files of shards in which images and captions alternate."""
    paths = []
    generator = np.random.default_rng(0)
    for start in range(0, samples, PER_SHARD):
        path = folder / f"{start // PER_SHARD:05d}.tar"
        path.write_text(path.name)
        sizes = generator.integers(20_000, 120_000, min(PER_SHARD, samples - start))
        blocks = np.concatenate([[0], np.cumsum(1 + -(-sizes // 512) + 2)[:-1]])
        places = np.stack([blocks, sizes, blocks + 1 + -(-sizes // 512), np.full_like(sizes, 100)], axis=1)
        with mock.patch.object(index_file, "scan", lambda _, places=places: Scan(places.astype("<i4"))):
            index_file.build_index(str(path))
        paths.append(path)
    return paths


def memory() -> dict[str, float]:
    """Memory of this process in MiB: anonymous pages, and its proportional part of shared memory."""
    status = Path("/proc/self/status").read_text()
    parts = Path("/proc/self/smaps_rollup").read_text()
    own = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    shared = re.search(r"^Pss_Shmem:\s+(\d+) kB", parts, re.MULTILINE)
    return {"own_mib": int(own[1]) / 1024, "shared_mib": int(shared[1]) / 1024}


if __name__ == "__main__":
    main()
