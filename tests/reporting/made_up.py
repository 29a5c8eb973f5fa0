"""ReportedRun folders with made-up figures, as training writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from growclip_ds.architecture import Architecture

BASE = Architecture(0, 1, 1, 1, 1, 0)
GROWN = Architecture(1, 2, 1, 1, 1, 0)
SUPERNET = Architecture(1, 2, 2, 2, 2, 1)
BATCH = 50
SEEN = 20 * BATCH  # pairs of a phase
ON_TWO_CPUS = {"ranks": 2, "device": "CPU", "kernels": "torch"}


def classified(dataset: str, top1: float, samples: int = 960) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "type": "classification",
        "samples": samples,
        "top1": top1,
        "top5": 100.0,
        "mean_per_class": top1,
        "unreadable": 0,
    }


def retrieved(dataset: str, image_to_text: Sequence[float], text_to_image: Sequence[float]) -> dict[str, Any]:
    recalls = {
        way: {f"R@{k}": figure for k, figure in zip((1, 5, 10), figures, strict=True)}
        for way, figures in (("image_to_text", image_to_text), ("text_to_image", text_to_image))
    }
    return {"dataset": dataset, "type": "retrieval", "pictures": 960, "captions": 2880, **recalls, "unreadable": 0}


def candidate(architecture: Architecture, parameters: int, accuracy: float) -> dict[str, Any]:
    return {
        "architecture": asdict(architecture),
        "parameters": parameters,
        "accuracy": accuracy,
        "metric": accuracy,
    }


def write_config(run: Path, seed: int = 0, steps: int = 2, **sections: Any) -> Path:
    """A run's folder with its configuration; `sections` are laid over it."""
    config = {
        "seed": seed,
        "model": {"base": asdict(BASE), "image_size": 32, "context_length": 16, "embed_dim": 16},
        "data": {
            "subsets": [{"name": f"s{i}", "shards": f"s{i}"} for i in range(1, steps + 1)],
            "tokenizer": {"vocab_size": 300},
        },
        "training": {"global_batch_size": BATCH},
    }
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config | sections))
    return run


def write_phase(
    run: Path,
    step: int,
    phase: str = "train",
    accuracy: float | None = None,
    architecture: Architecture = BASE,
    parameters: int = 440_000,
    kind: str = "growclip",
    **more: Any,
) -> None:
    """A finished phase: 20 iterations, an hour and a half on two CPU ranks, but for what is `more`."""
    record: dict[str, Any] = {
        "samples": 500 * step,
        "parameters": parameters,
        "model": {"kind": kind, "architecture": asdict(architecture)},
        "iterations": 20,
        "first_iteration": 0,
        "seconds": 5400.0,
        "curve": [],
        "epochs": -(-SEEN // (500 * step)),
        "pairs_seen": SEEN,
        "text_tokens_seen": 9 * SEEN,
        "dead_workers": 0,
        "broken_samples": {},
        "skipped_iterations": 0,
        "evaluation": [] if accuracy is None else [classified("objects", accuracy)],
        **ON_TWO_CPUS,
        **more,
    }
    record.setdefault("device_seconds", record["ranks"] * record["seconds"])
    if "candidates" in record:
        record.setdefault("selection_set", "chosen_on")
    folder = run / f"step_{step}" / phase
    folder.mkdir(parents=True)
    (folder / "phase.json").write_text(json.dumps(record))


def write_growth(run: Path, accuracies: tuple[float, float], seed: int = 0, **sections: Any) -> Path:
    """A GrowCLIP of two growth steps, the second with three phases."""
    write_config(run, seed, **sections)
    write_phase(run, 1, accuracy=accuracies[0])
    write_phase(run, 2, "finetune", architecture=SUPERNET, parameters=1_700_000)
    write_phase(
        run,
        2,
        "selection",
        architecture=SUPERNET,
        parameters=1_700_000,
        selection_set="chosen_on",
        candidates=[
            candidate(GROWN, 600_000, 9.0),
            candidate(BASE, 440_000, 5.0),
            candidate(Architecture(0, 2, 1, 1, 1, 0), 540_000, 6.5),
            candidate(Architecture(0, 1, 1, 1, 1, 1), 490_000, 4.75),
        ],
    )
    write_phase(run, 2, accuracy=accuracies[1], architecture=GROWN, parameters=600_000)
    return run


def write_fixed(run: Path, method: str, accuracies: Sequence[float], seed: int = 0, **sections: Any) -> Path:
    """A fixed CLIP of as many growth steps as accuracies."""
    write_config(run, seed, method=method, **sections)
    for step, accuracy in enumerate(accuracies, start=1):
        write_phase(run, step, accuracy=accuracy, architecture=GROWN_CLIP, parameters=610_000, kind="clip")
    return run


GROWN_CLIP = Architecture(0, 2, 1, 1, 1, 0)
