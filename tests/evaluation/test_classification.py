"""Zero-shot classification against plain loops in fp64, at any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from growclip_ds.architecture import Architecture
from growclip_ds.evaluation import ClassificationResult, ModelEncoder, classify, evaluate, load_evaluation_set
from growclip_ds.model.growclip import GrowCLIP
from tests.evaluation import sets
from tests.group import Groups

LABELS = [3, 1, 4, 1, 5, 0, 2, 6, 5, 3, 5, 1, 0, 2, 2, 4, 4, 6, 0, 0, 3, 5, 1, 2, 1, 3, 3]  # 27 samples


def expected(labels: list[int], image_variant: int, text_variant: int) -> tuple[float, float, float]:
    """Top-1, top-5 and mean per class in percent, a picture at a time."""
    embeddings = []
    for name in sets.CLASS_NAMES:
        prompts = [sets.text_feature(text_variant, t.replace("{c}", name)).astype(float) for t in sets.TEMPLATES]
        mean = np.mean([prompt / np.linalg.norm(prompt) for prompt in prompts], axis=0)
        embeddings.append(mean / np.linalg.norm(mean))
    top1, top5 = [], []
    for number, label in enumerate(labels):
        image = sets.image_feature(image_variant, sets.picture(number)).astype(float)
        order = sorted(range(len(embeddings)), key=lambda c: (-float(image @ embeddings[c]), c))
        top1.append(order[0] == label)
        top5.append(label in order[:5])
    per_class = [np.mean([hit for hit, label in zip(top1, labels, strict=True) if label == c]) for c in set(labels)]
    return 100 * np.mean(top1), 100 * np.mean(top5), 100 * np.mean(per_class)


def classify_on_rank(folder: Path) -> tuple[list[ClassificationResult], list[tuple[str, int]]]:
    encoder = sets.KnownEncoder()
    return classify(encoder, load_evaluation_set(folder), sets.tokenize, sets.SIZE, 5), encoder.calls


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("labels", [LABELS, LABELS[:1]], ids=["27 samples", "1 sample"])
def test_equals_plain_loops_for_every_candidate(tmp_path: Path, group: Groups, ranks: int, labels: list[int]) -> None:
    sizes = [len(labels) - 1, 0, 1]
    folder = sets.write_classification_set(tmp_path / "things", labels, sizes)
    outcomes = group(ranks).run(classify_on_rank, folder)
    results = outcomes[0][0]
    assert all(outcome[0] == results for outcome in outcomes)
    assert len(results) == 4
    for result, image_variant, text_variant in zip(
        results, sets.KnownEncoder.image_variants, sets.KnownEncoder.text_variants, strict=True
    ):
        assert (result.dataset, result.samples, result.unreadable) == ("things", len(labels), 0)
        figures = (result.top1, result.top5, result.mean_per_class)
        assert figures == pytest.approx(expected(labels, image_variant, text_variant), abs=1e-9)
    # The work is shared: the ranks' batches add up to the set, and to the prompts.
    for kind, total in (("image", len(labels)), ("text", len(sets.CLASS_NAMES) * len(sets.TEMPLATES))):
        assert sum(n for _, calls in outcomes for k, n in calls if k == kind) == total
        assert max(n for _, calls in outcomes for k, n in calls if k == kind) <= 5


def test_ties_fall_as_for_an_argmax_and_what_is_no_number_is_wrong(tmp_path: Path) -> None:
    dataset = load_evaluation_set(sets.write_classification_set(tmp_path / "things", LABELS, [27]))
    collapsed, broken = classify(sets.ConstantEncoder(), dataset, sets.tokenize, sets.SIZE, 8)
    assert collapsed.top1 == pytest.approx(100 * LABELS.count(0) / 27)
    assert collapsed.top5 == pytest.approx(100 * sum(label < 5 for label in LABELS) / 27)
    assert (broken.top1, broken.top5, broken.mean_per_class) == (0, 0, 0)


def classify_with_model(folder: Path) -> list[ClassificationResult]:
    torch.manual_seed(3)
    architecture = Architecture(1, 1, 1, 1, 2, 1)
    model = GrowCLIP(architecture, vocab_size=1001, context_length=40, image_size=16, embed_dim=32)
    return evaluate(ModelEncoder(model), load_evaluation_set(folder), sets.tokenize, sets.SIZE, 5)


def test_a_model_gets_the_same_figures_at_any_number_of_ranks(tmp_path: Path, group: Groups) -> None:
    folder = sets.write_classification_set(tmp_path / "things", LABELS, [27])
    alone = classify_with_model(folder)
    assert len(alone) == 1
    for ranks in (2, 3):
        assert group(ranks).run(classify_with_model, folder) == [alone] * ranks


def test_result_as_json() -> None:
    result = ClassificationResult("things", 27, 33.0, 66.0, 30.0, 1)
    assert result.accuracy == 33.0
    assert json.loads(json.dumps(result.to_json())) == {
        "dataset": "things",
        "type": "classification",
        "samples": 27,
        "top1": 33.0,
        "top5": 66.0,
        "mean_per_class": 30.0,
        "unreadable": 1,
    }
