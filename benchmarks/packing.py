"""Compares a text tower on packed captions with the same tower on captions padded to the context length.

    python benchmarks/packing.py                 # on the GPU, or small on the CPU if there is none
    python benchmarks/packing.py --real FOLDER   # also captions of the webdataset shards in FOLDER (jpg, txt)

with the packages installed (`make install`), or with kernels/ on PYTHONPATH. Writes results/packing_DEVICE.json. Takes
about two minutes. A tokenizer is trained for each kind of captions.

Both are GrowCLIP's text tower, forward and backward, with the same weights. When padded, every caption is a sequence of
77 tokens, filled with end-of-text tokens as in other trainers, and its feature is taken at the first end-of-text token.
Before anything is timed, both are checked to give the same features, as they must: attention is causal, so padding does
not reach the tokens before it. The two are timed alternately.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own folder is there, not the repository

from benchmarks import common
from benchmarks.captions import built_in_captions, built_in_tokenizer, pad
from benchmarks.pictures import read_pairs
from growclip_ds.architecture import Architecture
from growclip_ds.data.tokens import Tokenizer, train_tokenizer
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.model.packed import PackedTokens

CONTEXT_LENGTH = 77
VOCABULARY = 8192
ON_GPU = {"batch": 1024, "architecture": Architecture(0, 0, 1, 12, 8, 0), "dtype": torch.bfloat16}
ON_CPU = {"batch": 64, "architecture": Architecture(0, 0, 1, 4, 4, 0), "dtype": torch.float32}
MOST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of L2-normalised features
COLUMNS = {
    "captions": ("captions", ""),
    "mean_tokens": ("mean tokens", ".1f"),
    "tokens_ratio": ("77 / mean", ".2f"),
    "packed_ms": ("packed ms", ".1f"),
    "padded_ms": ("padded ms", ".1f"),
    "ratio": ("ratio", ".2f"),
    "least_ratio": ("least", ".2f"),
    "most_ratio": ("most", ".2f"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="folder of webdataset shards (jpg, txt)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds in which each is timed")
    arguments = parser.parse_args()
    device = common.find_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    setting = ON_GPU if device.type == "cuda" else ON_CPU
    rows = [
        measure(
            "built-in",
            built_in_captions(setting["batch"]),
            built_in_tokenizer(VOCABULARY),
            device,
            setting,
            arguments.rounds,
        )
    ]
    if arguments.real:
        rows.append(measure("real", *real(arguments.real, setting["batch"]), device, setting, arguments.rounds))
    print(common.markdown_table(rows, COLUMNS))
    tower = setting["architecture"]
    notes = [
        f"text tower of {tower.text_blocks} blocks and {tower.text_heads} heads of 64, {setting['batch']} captions, "
        f"{setting['dtype']}, forward and backward; median of {arguments.rounds} rounds; ratio: median of the ratios",
        "padded: every caption is a sequence of 77 tokens",
    ]
    print(common.write_results("packing", rows, device, {}, notes))


def real(folder: Path, count: int) -> tuple[list[str], Tokenizer]:
    """Captions sampled evenly from the folder's shards, and a tokenizer trained on all their captions."""
    captions = [caption for _, caption in read_pairs(folder)]
    every = max(1, len(captions) // count)
    return captions[::every][:count], train_tokenizer(captions, VOCABULARY, CONTEXT_LENGTH)


def measure(
    name: str, captions: list[str], tokenizer: Tokenizer, device: torch.device, setting: dict[str, Any], rounds: int
) -> dict[str, Any]:
    torch.manual_seed(0)
    model = GrowCLIP(
        setting["architecture"], tokenizer.vocab_size, CONTEXT_LENGTH, 32, end_of_text=tokenizer.end_of_text
    ).to(device, setting["dtype"])
    packed = tokenizer(captions)
    full = PackedTokens(
        pad(packed, CONTEXT_LENGTH).flatten(),
        torch.arange(len(captions) + 1, dtype=torch.int32) * CONTEXT_LENGTH,
        CONTEXT_LENGTH,
    ).to(device)
    lengths = packed.cu_seqlens.diff().to(device)
    ends = full.cu_seqlens[:-1].long() + lengths - 1  # positions of the captions' last tokens in the padded rows
    packed = packed.to(device)

    def encode_padded() -> Tensor:
        return model.text_head(model.text(full, model.architecture)[ends])

    with torch.no_grad():
        error = float((model.encode_text(packed) - encode_padded()).abs().max())
    if error > MOST_ERROR[setting["dtype"]]:
        raise SystemExit(f"the features of packed and padded captions differ by up to {error:.1e}")
    turns = []
    for turn in range(rounds + 1):
        seconds = [seconds_of(encode, device) for encode in (lambda: model.encode_text(packed), encode_padded)]
        if turn:  # the first warms up
            turns.append(seconds)
    ratios = [padded / unpadded for unpadded, padded in turns]
    unpadded, padded = (1000 * statistics.median(column) for column in zip(*turns, strict=True))
    mean = float(lengths.float().mean())
    return {
        "captions": name,
        "mean_tokens": mean,
        "tokens_ratio": CONTEXT_LENGTH / mean,
        "packed_ms": unpadded,
        "padded_ms": padded,
        "ratio": statistics.median(ratios),
        "least_ratio": min(ratios),
        "most_ratio": max(ratios),
        "largest_difference": error,
    }


def seconds_of(encode: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of a forward and a backward pass; on the CPU processor time, which other work affects least."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    common.synchronize(device)
    start = clock()
    encode().float().square().sum().backward()
    common.synchronize(device)
    return clock() - start


if __name__ == "__main__":
    main()
