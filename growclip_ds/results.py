"""Results of an evaluation, in percent."""

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
        samples: pictures classified.
        top1: percent of pictures whose class came first.
        top5: percent of pictures whose class came among the first five.
        mean_per_class: mean of the classes' own top-1, classes without a picture left out.
        unreadable: pictures of the set that could not be decoded, which are in no figure.
    """

    dataset: str
    samples: int
    top1: float
    top5: float
    mean_per_class: float
    unreadable: int = 0

    @property
    def accuracy(self) -> float:
        """The figure that Eq. 7 and the summaries take."""
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
        pictures: number of pictures, each a query and an answer.
        captions: number of captions, each a query and an answer.
        image_to_text: percent of pictures for which a right caption is among the first k, by k.
        text_to_image: percent of captions for which a right picture is among the first k, by k.
        unreadable: pictures that could not be decoded; they and their captions are in no figure.
    """

    dataset: str
    pictures: int
    captions: int
    image_to_text: Mapping[int, float]
    text_to_image: Mapping[int, float]
    unreadable: int = 0

    @property
    def accuracy(self) -> float:
        """Mean of both directions' R@1: the figure that Eq. 7 and the summaries take."""
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
    """What a mean is over: the classification sets, where there are any, else all sets.

    Top-1 of a classification and recall of a retrieval make no mean together.
    """
    results = list(results)
    return [result for result in results if isinstance(result, ClassificationResult)] or results


def result_from_json(stored: Mapping[str, Any]) -> Result:
    """What a result's `to_json` made.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
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
