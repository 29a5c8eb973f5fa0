"""Zero-shot retrieval against plain loops in fp64, at any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from growclip_ds.data.batch import Batch
from growclip_ds.distributed import rank
from growclip_ds.errors import InputError
from growclip_ds.evaluation import RetrievalResult, load_evaluation_set, retrieval, retrieve, retrieve_pairs
from tests.evaluation import sets
from tests.group import Groups

Pair = tuple[int, str]  # seed of a picture, caption

# Of 12 pictures, the last two equal earlier ones; "twin" and "a thing" are captions of several.
PICTURES = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 5]
CAPTIONS = [
    ["a thing"],
    ["red", "blue", "twin"],
    ["twin"],
    ["green"],
    ["one", "two", "three", "four"],
    ["a thing", "a thing"],
    ["six"],
    ["seven"],
    ["eight", "huit"],
    ["nine"],
    ["grass"],
    ["five"],
]


def expected(
    pairs: list[Pair], queries: list, is_image: bool, image_variant: int, text_variant: int
) -> dict[int, float]:
    """R@k in percent, a query at a time: pairs say what is right, equal answers are one answer."""
    answers = sorted({text if is_image else seed for seed, text in pairs})

    def vector(query: int | str) -> np.ndarray:
        if isinstance(query, str):
            return sets.text_feature(text_variant, query).astype(float)
        return sets.image_feature(image_variant, sets.picture(query)).astype(float)

    places = []
    for query in queries:
        right = {text if is_image else seed for seed, text in pairs if query == (seed if is_image else text)}
        similarity = {answer: float(vector(query) @ vector(answer)) for answer in answers}
        best = max(similarity[answer] for answer in right)
        places.append(sum(similarity[answer] >= best for answer in answers if answer not in right))
    return {k: 100 * np.mean([place < k for place in places]) for k in (1, 5, 10)}


def assert_as_expected(results: list[RetrievalResult], pictures: list[int], pairs: list[Pair]) -> None:
    assert len(results) == 4
    variants = zip(sets.KnownEncoder.image_variants, sets.KnownEncoder.text_variants, strict=True)
    for result, variant in zip(results, variants, strict=True):
        assert (result.pictures, result.captions) == (len(pictures), len(pairs))
        assert result.image_to_text == pytest.approx(expected(pairs, pictures, True, *variant), abs=1e-9)
        assert result.text_to_image == pytest.approx(expected(pairs, [t for _, t in pairs], False, *variant), abs=1e-9)
        assert result.accuracy == (result.image_to_text[1] + result.text_to_image[1]) / 2


def retrieve_on_rank(folder: Path, block: int) -> list[RetrievalResult]:
    whole, retrieval.BLOCK = retrieval.BLOCK, block
    try:
        return retrieve(sets.KnownEncoder(), load_evaluation_set(folder), sets.tokenize, sets.SIZE, 2)
    finally:
        retrieval.BLOCK = whole


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(("count", "block"), [(12, retrieval.BLOCK), (12, 40), (12, 1), (1, 40)])
def test_equals_plain_loops_for_every_candidate(
    tmp_path: Path, group: Groups, ranks: int, count: int, block: int
) -> None:
    samples = [
        (sets.encoded(sets.picture(seed)), "\n".join(texts))
        for seed, texts in zip(PICTURES[:count], CAPTIONS, strict=False)
    ]
    folder = sets.write_set(tmp_path / "pairs", "retrieval", samples, [count])
    results = group(ranks).run(retrieve_on_rank, folder, block)
    assert all(result == results[0] for result in results)
    pictures = PICTURES[:count]
    pairs = [(seed, text) for seed, texts in zip(pictures, CAPTIONS, strict=False) for text in texts]
    assert_as_expected(results[0], pictures, pairs)


def batch(pairs: list[Pair]) -> Batch:
    pixels = torch.from_numpy(np.stack([sets.picture(seed) for seed, _ in pairs]))  # (n, S, S, 3)
    captions = [caption for _, caption in pairs]
    return Batch(pixels.permute(0, 3, 1, 2).contiguous(), sets.tokenize(captions), captions)


def retrieve_pairs_on_rank(batches: list[list[list[Pair]]]) -> list[RetrievalResult]:
    mine = batches[rank()] if rank() < len(batches) else []
    return retrieve_pairs(sets.KnownEncoder(), map(batch, mine), sets.SIZE)


@pytest.mark.parametrize("ranks", [2, 3])
def test_batches_of_pairs_may_differ_between_ranks(group: Groups, ranks: int) -> None:
    pairs = [(seed, f"caption {seed % 9}") for seed in range(13)]
    batches = [[pairs[:5], pairs[5:6]], [pairs[6:10], pairs[10:11], pairs[11:]]]
    results = group(ranks).run(retrieve_pairs_on_rank, batches)
    assert all(result == results[0] for result in results)
    assert_as_expected(results[0], [seed for seed, _ in pairs], pairs)


def test_a_collapsed_model_finds_nothing() -> None:
    pairs = [batch([(seed, f"caption {seed}") for seed in range(20)])]
    for result in retrieve_pairs(sets.ConstantEncoder(), pairs, sets.SIZE):
        assert set(result.image_to_text.values()) | set(result.text_to_image.values()) == {0}
    # With a single pair there is nothing to mix up, unless similarities are no numbers.
    collapsed, broken = retrieve_pairs(sets.ConstantEncoder(), [batch([(0, "caption")])], sets.SIZE)
    assert (collapsed.accuracy, broken.accuracy) == (100, 0)


def test_right_answers_that_tie_do_not_stand_in_each_others_way(tmp_path: Path) -> None:
    samples = [(sets.encoded(sets.picture(0)), "one\ntwo\nthree"), (sets.encoded(sets.picture(1)), "four")]
    dataset = load_evaluation_set(sets.write_set(tmp_path / "pairs", "retrieval", samples, [2]))
    collapsed, _ = retrieve(sets.ConstantEncoder(), dataset, sets.tokenize, sets.SIZE, 2)
    assert collapsed.image_to_text == {1: 0, 5: 100, 10: 100}  # behind one and three wrong ones
    dataset = load_evaluation_set(sets.write_set(tmp_path / "pairs", "retrieval", samples[:1], [1]))
    collapsed, _ = retrieve(sets.ConstantEncoder(), dataset, sets.tokenize, sets.SIZE, 2)
    assert collapsed.image_to_text == {1: 100, 5: 100, 10: 100}


def test_no_pairs_at_all_is_an_error() -> None:
    with pytest.raises(InputError, match="held-out pairs: no pairs"):
        retrieve_pairs(sets.KnownEncoder(), [], sets.SIZE)


def test_result_as_json() -> None:
    result = RetrievalResult("pairs", 12, 18, {1: 10.0, 5: 20.0, 10: 30.0}, {1: 20.0, 5: 30.0, 10: 40.0}, 2)
    assert json.loads(json.dumps(result.to_json())) == {
        "dataset": "pairs",
        "type": "retrieval",
        "pictures": 12,
        "captions": 18,
        "image_to_text": {"R@1": 10.0, "R@5": 20.0, "R@10": 30.0},
        "text_to_image": {"R@1": 20.0, "R@5": 30.0, "R@10": 40.0},
        "unreadable": 2,
    }
