"""Evaluation results, in percent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ClassificationResult:
    """Zero-shot classification of one set by one model.

    Attributes:
        dataset: name of the set.
        samples: number of images classified.
        top1: percent of images whose class ranked first.
        top5: percent of images whose class ranked among the first five.
        mean_per_class: mean of the per-class top-1, over classes with at least one image.
        unreadable: number of images that could not be decoded; they are excluded from all other figures.
    """

    dataset: str
    samples: int
    top1: float
    top5: float
    mean_per_class: float
    unreadable: int = 0

    @property
    def accuracy(self) -> float:
        """Top-1: the metric that Eq. 7 and the summaries use."""
        return self.top1

    def to_json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "type": "classification",
            "samples": self.samples,
            "top1": self.top1,
            "top5": self.top5,
            "mean_per_class": self.mean_per_class,
            "unreadable": self.unreadable,
        }


@dataclass(frozen=True)
class RetrievalResult:
    """Zero-shot retrieval on one set by one model.

    Attributes:
        dataset: name of the set.
        pictures: number of images, each a query and an answer.
        captions: number of captions, each a query and an answer.
        image_to_text: percent of images with a correct caption among the first k, by k.
        text_to_image: percent of captions with a correct image among the first k, by k.
        unreadable: number of images that could not be decoded; they and their captions are excluded from all other
            figures.
    """

    dataset: str
    pictures: int
    captions: int
    image_to_text: Mapping[int, float]
    text_to_image: Mapping[int, float]
    unreadable: int = 0

    @property
    def accuracy(self) -> float:
        """Mean of both directions' R@1: the metric that Eq. 7 and the summaries use."""
        return (self.image_to_text[1] + self.text_to_image[1]) / 2

    def to_json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "type": "retrieval",
            "pictures": self.pictures,
            "captions": self.captions,
            "image_to_text": {f"R@{k}": recall for k, recall in self.image_to_text.items()},
            "text_to_image": {f"R@{k}": recall for k, recall in self.text_to_image.items()},
            "unreadable": self.unreadable,
        }


Result = ClassificationResult | RetrievalResult


def averaged(results: Iterable[Result]) -> list[Result]:
    """The results to average over: those of classification sets if there are any, otherwise all.

    Classification top-1 and retrieval recall are not averaged together.
    """
    results = list(results)
    return [result for result in results if isinstance(result, ClassificationResult)] or results


def result_from_json(stored: Mapping[str, Any]) -> Result:
    """The result from the output of its `to_json`.

    Raises:
        KeyError, TypeError, ValueError: `stored` is not the output of `to_json`.
    """
    fields = dict(stored)
    result: Result
    if fields.pop("type") == "classification":
        result = ClassificationResult(**fields)
    else:
        for direction in ("image_to_text", "text_to_image"):
            fields[direction] = {int(k.removeprefix("R@")): recall for k, recall in fields[direction].items()}
        result = RetrievalResult(**fields)
    if not (math.isfinite(result.accuracy) and 0 <= result.accuracy <= 100):
        raise ValueError(f"the accuracy on {result.dataset} is {result.accuracy} percent")
    return result
