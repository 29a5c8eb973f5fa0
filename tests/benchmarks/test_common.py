"""What the benchmarks say of a machine and of a model's operations is so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from benchmarks.captions import built_in_captions, built_in_tokenizer, fill, pad
from benchmarks.flops import block_flops, clip_flops, growclip_flops, training_flops
from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.model.packed import pack, pack_padded

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


def test_a_block_by_hand() -> None:
    """3 tokens of width 2, each seeing 2: qkv 2·3·2·6, out 2·3·2·2, MLP 2·(2·3·2·8), scores and values 2·(2·6·2)."""
    assert block_flops(3, 6, 2) == 72 + 24 + 192 + 48
    assert training_flops(100, pairs=2, contrasted_with=3, embed_dim=4) == 300 + 3 * 48


@pytest.mark.parametrize("architecture", [Architecture(2, 2, 2, 1, 1, 0), Architecture(1, 1, 1, 2, 3, 2)])
def test_operations_are_those_that_pytorch_counts(architecture: Architecture) -> None:
    """With captions of one token, of which a causal mask hides nothing; PyTorch counts what it would hide."""
    sizes = ModelSizes(vocab_size=16, context_length=4, image_size=32, embed_dim=8)
    torch.manual_seed(0)
    model = GrowCLIP(architecture, 16, 4, 32, 8)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.randn(3, 3, 32, 32), pack([[15], [15], [15]]))
    assert counter.get_total_flops() == growclip_flops(architecture, sizes, [1, 1, 1])


def test_a_caption_sees_its_past_and_no_padding() -> None:
    architecture, sizes = Architecture(0, 0, 1, 1, 1, 0), ModelSizes(image_size=16)
    one, two = (growclip_flops(architecture, sizes, [length]) for length in (3, 5))
    width = 64
    assert two - one == 24 * 2 * width**2 + 4 * width * (15 - 6)


def test_vit_b_16_is_that_of_the_literature() -> None:
    """open_clip's profile of ViT-B-16: 41.09 GFLOP a pair, all 77 tokens and all of the causal scores counted."""
    architecture, sizes = Architecture(0, 12, 12, 12, 8, 0), ModelSizes()
    hidden = 12 * 4 * 512 * (77**2 - 77 * 78 // 2)
    assert clip_flops(architecture, sizes, [77]) + hidden == pytest.approx(41.09e9, rel=0.01)


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
