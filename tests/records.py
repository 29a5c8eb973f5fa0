"""Records of phases as training leaves them, with made-up figures."""

from __future__ import annotations

from typing import Any

from growclip_ds.architecture import Architecture
from growclip_ds.growth.phases import Phase
from growclip_ds.results import ClassificationResult, RetrievalResult
from growclip_ds.run.records import PhaseRecord, Training


def phase_record(step: int = 1, phase: Phase = Phase.TRAIN, **values: Any) -> PhaseRecord:
    """Ten iterations, a minute on two CPU ranks; `values` are in place of what is made up."""
    made_up: dict[str, Any] = {
        "samples": 1000 * step,
        "parameters": 1_000_000,
        "kind": "growclip",
        "architecture": Architecture(0, 1, 1, 1, 1, 0),
        "iterations": 10,
        "seconds": 60.0,
        "device_seconds": 120.0,
        "training": training(),
    }
    return PhaseRecord(step, phase, **(made_up | values))


def training(**values: Any) -> Training:
    made_up = {"epochs": 1, "ranks": 2, "device": "CPU", "kernels": "torch", "pairs_seen": 1000}
    return Training(**(made_up | {"text_tokens_seen": 9000} | values))


def classified(dataset: str, accuracy: float) -> ClassificationResult:
    return ClassificationResult(dataset, 960, accuracy, 100.0, accuracy)


def retrieved(dataset: str, accuracy: float) -> RetrievalResult:
    recalls = {1: accuracy, 5: 100.0, 10: 100.0}
    return RetrievalResult(dataset, 960, 2880, recalls, recalls)
