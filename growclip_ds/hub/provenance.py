"""Where a model comes from: the growth steps that led to it, their data, and how it was evaluated."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from growclip_ds.architecture import Architecture
from growclip_ds.checkpoint import Checkpoint
from growclip_ds.data.subsets import read_subsets
from growclip_ds.evaluation.results import ClassificationResult, RetrievalResult, result_from_json
from growclip_ds.evaluation.subject import Subject
from growclip_ds.monitor.summary import read_summaries
from growclip_ds.phases import Phase
from growclip_ds.run_folder import RunFolder

Result = ClassificationResult | RetrievalResult


@dataclass(frozen=True)
class GrowthStep:
    """A growth step that the model has been through.

    Attributes:
        step: counted from 1.
        architecture: of the model after it; None of a fixed model.
        parameters: of that model, without the temperature.
        samples: image-text pairs that had arrived.
    """

    step: int
    architecture: Architecture | None
    parameters: int
    samples: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Provenance:
    """What is known of a model's training.

    Attributes:
        steps: the growth steps, the last of which trained the model; empty if it belongs to no run.
        subsets: name and usable pairs of the data subsets that had arrived.
        results: of its evaluations in fp32, by set.
    """

    steps: Sequence[GrowthStep] = ()
    subsets: Sequence[tuple[str, int]] = ()
    results: Sequence[Result] = ()


def read_provenance(subject: Subject) -> Provenance:
    """What the run of a checkpoint, and the evaluations beside it, say of it.

    Raises:
        InputError: some of it is damaged.
    """
    results = {}
    steps: list[GrowthStep] = []
    subsets: list[tuple[str, int]] = []
    if subject.run is not None and subject.growth_step is not None:
        steps = _growth_steps(subject, subject.run, subject.growth_step)
        if subject.run.data_file.exists():
            arrived = read_subsets(subject.run.data_file)[: subject.growth_step]
            subsets = [(subset.name, subset.samples or 0) for subset in arrived]
        if subject.run.is_finished(subject.growth_step, Phase.TRAIN):
            reported = subject.run.record(subject.growth_step, Phase.TRAIN).get("evaluation", [])
            results = {result["dataset"]: result_from_json(result) for result in reported}
    results |= {result.dataset: result for result in _stored(subject.folder.parent / "evaluation", subject.digest)}
    return Provenance(steps, subsets, list(results.values()))


def _growth_steps(subject: Subject, run: RunFolder, last: int) -> list[GrowthStep]:
    steps = [
        GrowthStep(summary.step, summary.architecture, summary.parameters, summary.samples)
        for summary in read_summaries(run)
        if summary.step <= last
    ]
    record = Checkpoint(subject.folder).description.get("record")
    if record is not None and (not steps or steps[-1].step < last):  # trained, but not evaluated yet
        steps.append(GrowthStep(last, subject.architecture, record["parameters"], record["samples"]))
    return steps


def _stored(folder: Path, digest: str) -> Iterator[Result]:
    """What `growclip evaluate` has kept of these weights."""
    for file in sorted(folder.glob("*.json")):
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            if (stored["of"]["weights"], stored["of"]["precision"]) == (digest, "fp32"):
                yield result_from_json(stored["result"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # no result, or a damaged one, which evaluation would compute again
