"""What the growth steps of a run came to, read from its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from growclip_ds.architecture import Architecture
from growclip_ds.config.config import load_config
from growclip_ds.growth.phases import Phase
from growclip_ds.growth.selection import Candidate
from growclip_ds.run.folder import RunFolder


@dataclass(frozen=True)
class StepSummary:
    """A finished growth step.

    Attributes:
        step: counted from 1.
        samples: of all subsets that had arrived.
        architecture: trained.
        parameters: of it, without the temperature.
        seconds: that its phases took.
        before: zero-shot accuracy of the step before, in percent by set; empty for the first step.
        after: that of this step's model.
        averaged: the sets that a mean is over: those of classification, where there are any.
        candidates: that it was chosen among, best first; none in the first step.
        selection_set: on which they were compared.
    """

    step: int
    samples: int
    architecture: Architecture
    parameters: int
    seconds: float
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    averaged: Sequence[str] = ()
    candidates: Sequence[Candidate] = ()
    selection_set: str | None = None


def read_summaries(folder: RunFolder) -> list[StepSummary]:
    """The finished growth steps of a run. Not collective.

    Raises:
        InputError: the folder holds no run, or something in it is damaged.
    """
    summaries: list[StepSummary] = []
    architecture = load_config(folder.config_file).model.base
    seconds, selection = 0.0, {}
    for step, phase, record in folder.records():
        seconds += record["seconds"]
        if "candidates" in record:
            selection = record
            architecture = Architecture(**record["candidates"][0]["architecture"])
        if phase is Phase.TRAIN:
            if "model" in record:  # the first runs did not say
                architecture = Architecture(**record["model"]["architecture"])
            summary = StepSummary(
                step=step,
                samples=record["samples"],
                architecture=architecture,
                parameters=record["parameters"],
                seconds=seconds,
                before=summaries[-1].after if summaries else {},
                after={result["dataset"]: _accuracy(result) for result in record["evaluation"]},
                averaged=[result["dataset"] for result in _averaged(record["evaluation"])],
                candidates=[Candidate.from_json(row) for row in selection.get("candidates", [])],
                selection_set=selection.get("selection_set"),
            )
            summaries.append(summary)
            seconds, selection = 0.0, {}
    return summaries


def _averaged(results: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Top-1 of a classification and recall of a retrieval make no mean together."""
    return [result for result in results if result["type"] == "classification"] or results


def _accuracy(result: Mapping[str, Any]) -> float:
    """The figure that stands for an evaluation: top-1, or the mean R@1 of both directions."""
    if result["type"] == "classification":
        return result["top1"]
    return (result["image_to_text"]["R@1"] + result["text_to_image"]["R@1"]) / 2
