"""Evaluation results as tables, as JSON and in TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from growclip_ds.monitor.tables import plain_table, print_plainly
from growclip_ds.results import ClassificationResult, Result, RetrievalResult, averaged

FIGURES = ("top1", "top5", "mean_per_class")


def print_results(results: Sequence[Result]) -> None:
    """Prints a table of the classification sets, with their mean, and a table of the retrieval sets."""
    print_plainly(_tables(results))


def mean(results: Sequence[Result]) -> dict[str, float] | None:
    """Mean of each metric over the classification sets, equally weighted; None if there are none."""
    rows = _classification(results)
    return {name: sum(getattr(row, name) for row in rows) / len(rows) for name in FIGURES} if rows else None


def results_json(results: Sequence[Result]) -> dict[str, Any]:
    """The results and their mean, for a JSON file."""
    return {"results": [result.to_json() for result in results], "mean": mean(results)}


def write_tensorboard(folder: Path, results: Sequence[Result], step: int) -> None:
    """Adds the metrics to a TensorBoard folder at a growth step; accuracies for Eq. 7 under the tags of training."""
    with SummaryWriter(str(folder)) as writer:
        for result in results:
            writer.add_scalar(f"zero_shot/{result.dataset}", result.accuracy, step)
            for name, figure in _figures(result).items():
                writer.add_scalar(f"zero_shot_{name}/{result.dataset}", figure, step)
        if used := averaged(results):
            writer.add_scalar("zero_shot/mean", fmean(result.accuracy for result in used), step)


def one_line(result: Result) -> str:
    """The main metric of a result, on one line."""
    if isinstance(result, ClassificationResult):
        return f"{result.top1:.1f} % of {result.samples:,} images"
    recalls = f"{result.image_to_text[1]:.1f} % image to text, {result.text_to_image[1]:.1f} % text to image"
    return f"R@1 {recalls}, {result.pictures:,} images"


def _figures(result: Result) -> dict[str, float]:
    if isinstance(result, ClassificationResult):
        return {name: getattr(result, name) for name in FIGURES}
    directions = {"image_to_text": result.image_to_text, "text_to_image": result.text_to_image}
    return {f"{name}_R{k}": recall for name, recalls in directions.items() for k, recall in recalls.items()}


def _classification(results: Sequence[Result]) -> list[ClassificationResult]:
    return [result for result in results if isinstance(result, ClassificationResult)]


def _tables(results: Sequence[Result]) -> Iterator[Table]:
    if classification := _classification(results):
        yield _classification_table(classification)
    if retrieval := [result for result in results if isinstance(result, RetrievalResult)]:
        yield _retrieval_table(retrieval)


def _classification_table(results: Sequence[ClassificationResult]) -> Table:
    table = plain_table("Zero-shot classification (%)")
    table.add_column("set")
    for name in ("images", "top-1", "top-5", "mean per class"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        figures = (f"{getattr(result, name):.1f}" for name in FIGURES)
        table.add_row(result.dataset, _count(result.samples, result.unreadable), *figures)
    averages = mean(results)
    if averages is not None and len(results) > 1:
        table.add_section()
        table.add_row(f"mean of {len(results)}", "", *(f"{averages[name]:.1f}" for name in FIGURES))
    return table


def _retrieval_table(results: Sequence[RetrievalResult]) -> Table:
    table = plain_table("Zero-shot retrieval: i→t, image to text; t→i, text to image (%)")
    table.add_column("set")
    for name in ("images", "captions"):
        table.add_column(name, justify="right", no_wrap=True)
    for direction in ("i→t", "t→i"):
        for place, k in enumerate(results[0].image_to_text):
            table.add_column(f"R@{k}" if place else f"{direction} R@{k}", justify="right", no_wrap=True)
    for result in results:
        recalls = (*result.image_to_text.values(), *result.text_to_image.values())
        images = _count(result.pictures, result.unreadable)
        table.add_row(result.dataset, images, f"{result.captions:,}", *(f"{recall:.1f}" for recall in recalls))
    return table


def _count(used: int, unreadable: int) -> str:
    return f"{used:,} ({unreadable:,} unreadable)" if unreadable else f"{used:,}"
