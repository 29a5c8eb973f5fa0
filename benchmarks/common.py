"""Shared by the benchmarks: the machine and its measured ceilings, timing, peak memory, and files of results."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "triton", "deepspeed", "transformers", "open_clip_torch")

# Dense bf16 operations per second from the vendor's data sheets, for devices whose name identifies the part.
PEAK_BF16 = {"NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA A100-SXM4-80GB": 312e12}

LEAST_REPEATS = 5  # least number of calls per measurement
CPU_SECONDS = 0.5  # least total duration of the calls
GPU_SECONDS, GPU_WARM_UP = 0.1, 0.025
GPU_CLOCK = 2e9  # approximate cycles per second of any GPU
LONGEST_HOLD = 0.02  # seconds; a call that takes longer to queue has by then queued enough to keep the device busy

Row = Mapping[str, Any]


def find_device() -> torch.device:
    """This process's GPU (by LOCAL_RANK, as launchers set it), or the CPU if there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware and software of a measurement; None for what is not available."""
    described: dict[str, Any] = {"device": device_name(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda,
        }
    return described | {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "GROWCLIP_KERNELS": os.environ.get("GROWCLIP_KERNELS"),
        "load_average": round(os.getloadavg()[0], 2),  # over the last minute, this measurement included
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {_cpu_name()}"


def ceilings(device: torch.device) -> dict[str, Any]:
    """The device's highest rates of copying and of matrix multiplication, measured on random data.

    Returns:
        copy_gb_s: 10^9 bytes per second, read plus written, of a copy within the device's memory.
        matmul_tflop_s: 10^12 operations per second of a matrix product; a multiply-add counts as two.
        matmul: size and type of that product.
        peak_tflop_s: the data sheet's dense bf16 rate in 10^12 operations per second; None if the device is not in
            PEAK_BF16.
    """
    on_gpu = device.type == "cuda"
    size = 2**32 if on_gpu else 2**28
    source, target = torch.randint(256, (2, size), dtype=torch.uint8, device=device)
    copy_ms = median_ms(lambda: target.copy_(source), device)
    side, dtype = (8192, torch.bfloat16) if on_gpu else (1024, torch.float32)
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    product_ms = median_ms(lambda: left @ right, device)
    peak = PEAK_BF16.get(device_name(device))
    return {
        "copy_gb_s": 2 * size / copy_ms / 1e6,
        "matmul_tflop_s": 2 * side**3 / product_ms / 1e9,
        "matmul": f"{side}^3 {str(dtype).removeprefix('torch.')}",
        "peak_tflop_s": peak and peak / 1e12,
    }


def median_ms(function: Callable[[], Any], device: torch.device) -> float:
    """Median duration of a call in milliseconds, after warm-up: wall-clock time on the CPU, device time on a GPU.

    Not for functions that communicate between ranks: each process decides for itself how often to call.
    """
    if device.type == "cuda":
        return _median_device_ms(function, device)
    function()
    durations: list[float] = []
    while len(durations) < LEAST_REPEATS or sum(durations) < CPU_SECONDS:
        start = time.perf_counter()
        function()
        durations.append(time.perf_counter() - start)
    return 1000 * statistics.median(durations)


def _median_device_ms(function: Callable[[], Any], device: torch.device) -> float:
    """Time between events around a call, with caches cleared and the device held back until the call is queued.

    Triton's `do_bench` does not hold the device back, so for a call that takes the host longer than the device it
    measures the host.
    """
    cache = torch.empty(2**28, dtype=torch.uint8, device=device)  # larger than the cache of a GPU
    function()  # compiles
    torch.cuda.synchronize(device)
    warm_up = time.perf_counter()
    while True:
        start = time.perf_counter()
        function()
        queued = time.perf_counter() - start
        torch.cuda.synchronize(device)
        if time.perf_counter() - warm_up > GPU_WARM_UP:
            break
    hold = int(min(2 * queued, LONGEST_HOLD) * GPU_CLOCK)
    durations: list[float] = []
    while len(durations) < LEAST_REPEATS or sum(durations) < 1000 * GPU_SECONDS:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache.zero_()
        torch.cuda._sleep(hold)
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize(device)
        durations.append(begin.elapsed_time(end))
    return statistics.median(durations)


def failure(error: Exception) -> str:
    """The note on a failed contestant: the error's type, often all that identifies Triton's errors, and message."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:80]


def iteration_seconds(step: Callable[[], Any], iterations: int, device: torch.device) -> list[float]:
    """Wall-clock durations of training steps in seconds, which include the device's idle time."""
    durations = []
    for _ in range(iterations):
        synchronize(device)
        start = time.perf_counter()
        step()
        synchronize(device)
        durations.append(time.perf_counter() - start)
    return durations


class PeakMemory:
    """Peak memory use since construction, in excess of the use at construction.

    On a GPU this is the memory allocated by PyTorch. On the CPU it is the process's resident memory, whose high-water
    mark Linux lets a process reset; memory freed earlier is first returned to the system, so that reusing it counts.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self._before = torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()
        self.restart()

    def restart(self) -> None:
        """Resets the peak, but not the base that it is measured from."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            Path("/proc/self/clear_refs").write_text("5")

    @property
    def bytes(self) -> int:
        on_gpu = self._device.type == "cuda"
        return (torch.cuda.max_memory_allocated(self._device) if on_gpu else resident_bytes("VmHWM")) - self._before


def write_results(
    name: str,
    rows: Sequence[Row],
    device: torch.device,
    ceilings: Mapping[str, Any],
    notes: Sequence[str] = (),
    folder: Path = RESULTS,
) -> Path:
    """Writes a benchmark's figures together with the command, the machine and its ceilings.

    Args:
        name: name of the benchmark.
        rows: one mapping per measurement, serialisable as JSON.
        device: the device measured.
        ceilings: the result of `ceilings` in the same run.
        notes: what a reader must know about how the figures were measured.
        folder: the folder for NAME_DEVICE.json.

    Returns:
        The path of the file.
    """
    path = result_path(name, device, ".json", folder)
    content = {
        "benchmark": name,
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(device),
        "ceilings": dict(ceilings),
        "notes": list(notes),
        "rows": [dict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def result_path(name: str, device: torch.device, suffix: str, folder: Path = RESULTS) -> Path:
    """The path of a result for this device, such as `results/attention_nvidia-h200.json`."""
    return folder / f"{name}_{slug(device_name(device))}{suffix}"


def slug(name: str) -> str:
    """A name in the form used in file names: lower case, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def markdown_table(rows: Sequence[Row], columns: Mapping[str, tuple[str, str]]) -> str:
    """The rows as a Markdown table.

    Args:
        rows: the rows; a missing or None value is shown as a dash.
        columns: header and format of each column, by key, such as ("ms", ".2f").
    """
    cells = [[header for header, _ in columns.values()]]
    cells += [[_cell(row.get(key), form) for key, (_, form) in columns.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_text = [form.endswith("s") or not form for _, form in columns.values()]
    lines = [
        "| " + " | ".join(c.ljust(w) if t else c.rjust(w) for c, w, t in zip(line, widths, is_text, strict=True)) + " |"
        for line in cells
    ]
    rule = (
        "|" + "|".join("-" * (w + 2) if t else "-" * (w + 1) + ":" for w, t in zip(widths, is_text, strict=True)) + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(value: Any, form: str) -> str:
    return "–" if value is None else format(value, form)


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """The first line that a command prints; None if it is not installed or fails, as git does outside a repository."""
    if shutil.which(command[0]) is None:
        return None
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.splitlines()[0].strip() if result.returncode == 0 and result.stdout else None


def resident_bytes(field: str = "VmRSS") -> int:
    """VmRSS, the process's resident memory, or VmHWM, its high-water mark, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)[1])
