"""What the benchmarks say of a machine and of a model's operations is so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import common
from benchmarks.captions import built_in_captions, built_in_tokenizer, fill, pad
from benchmarks.contenders import TransformersClip
from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.model.packed import pack_padded

CPU = torch.device("cpu")


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [{"shape": "197", "ms": 1.5}, {"shape": "77 causal", "ms": None}]
    path = common.write_results("attention", rows, CPU, {"copy_gb_s": 10.0}, ["a note"], tmp_path / "new")
    assert path == common.result_path("attention", CPU, ".json", tmp_path / "new")
    assert path.name == path.name.lower()
    content = json.loads(path.read_text())
    assert content["rows"] == rows
    assert content["ceilings"] == {"copy_gb_s": 10.0}
    assert content["notes"] == ["a note"]
    assert content["machine"]["packages"]["torch"] == torch.__version__
    assert content["machine"]["threads"] == torch.get_num_threads()
    assert content["machine"]["device"].startswith("CPU")


def test_the_table_lines_up_and_shows_what_is_missing() -> None:
    rows = [{"shape": "197", "ms": 1.5}, {"shape": "77 causal", "ms": None}]
    table = common.markdown_table(rows, {"shape": ("shape", "s"), "ms": ("ms", ".2f")})
    assert table == "| shape     |   ms |\n|-----------|-----:|\n| 197       | 1.50 |\n| 77 causal |    – |"


def test_peak_memory_counts_what_is_gone_again_and_starts_anew() -> None:
    mebibytes = 200
    memory = common.PeakMemory(CPU)
    torch.ones(mebibytes * 2**18)
    assert memory.bytes / 2**20 == pytest.approx(mebibytes, rel=0.1)
    memory.restart()
    assert memory.bytes / 2**20 < mebibytes / 10


def test_the_clock_measures_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(common.time, "perf_counter", lambda: float(next(now)))
    assert common.median_ms(lambda: None, CPU) == 1000
    assert common.iteration_seconds(lambda: next(now), 3, CPU) == [2, 2, 2]


def test_a_gpu_is_held_until_a_call_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that takes up at once what is queued, and does in 2 s what the host queues in 3."""
    clock = {"host": 0.0, "device": 0.0}

    def run(seconds: float) -> None:
        clock["device"] = max(clock["device"], clock["host"]) + seconds

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            run(0)
            self.at = clock["device"]

        def elapsed_time(self, end: Event) -> float:
            return 1000 * (end.at - self.at)

    def call() -> None:
        clock["host"] += 3
        run(2)

    monkeypatch.setattr(common, "LONGEST_HOLD", 10.0)
    monkeypatch.setattr(common.time, "perf_counter", lambda: clock["host"])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: run(cycles / common.GPU_CLOCK))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: clock.update(host=max(clock.values())))
    assert common._median_device_ms(call, CPU) == 2000


def test_captions_are_the_built_in_ones_packed_filled_and_padded() -> None:
    captions = built_in_captions(20)
    assert captions == built_in_captions(20)
    assert captions != built_in_captions(20, seed=1)
    tokenizer = built_in_tokenizer()
    packed = tokenizer(captions)
    again = pack_padded(pad(packed, 77), tokenizer.end_of_text)
    assert torch.equal(again.ids, packed.ids)
    assert torch.equal(again.cu_seqlens, packed.cu_seqlens)
    full = fill(packed, 77, tokenizer.vocab_size)
    assert full.cu_seqlens.diff().tolist() == [77] * 20
    assert torch.equal((full.ids == tokenizer.end_of_text).nonzero()[:, 0], full.cu_seqlens[1:] - 1)


def test_transformers_has_growclips_activation() -> None:
    contender = TransformersClip(Architecture(0, 1, 1, 1, 1, 0), ModelSizes(vocab_size=64, embed_dim=64), 63)
    assert {str(module) for module in contender.modules() if "GELU" in str(module)[:10]} == {"GELUActivation()"}
