"""Samples: a sample is what its seed, its set and its index say, and every class of every template can be told."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from growclip_ds.data.scenes.sets import (
    CLASSES,
    EVALUATION_SETS,
    RETRIEVAL,
    TEMPLATES,
    evaluation_sample,
    training_sample,
)
from growclip_ds.data.scenes.vocabulary import HELD_OUT


def test_training_sample_is_as_img2dataset_stores_it() -> None:
    sample = training_sample(seed=0, subset=1, index=5, size=48, key="100000005")
    record = json.loads(sample["json"])
    assert set(sample) == {"jpg", "txt", "json"}
    assert record["key"] == "100000005"
    assert record["caption"] == sample["txt"].decode()
    assert record["status"] == "success"
    assert Image.open(io.BytesIO(sample["jpg"])).size == (record["width"], record["height"]) == (48, 48)


def test_training_samples_are_told_apart_by_seed_subset_and_index() -> None:
    places = [(0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1)]
    samples = [training_sample(seed, subset, index, 48, "k")["jpg"] for seed, subset, index in places]
    assert len(set(samples)) == len(places)
    assert samples[0] == training_sample(0, 1, 0, 48, "k")["jpg"]


def test_captions_do_not_depend_on_the_size_of_pictures() -> None:
    assert training_sample(0, 1, 3, 32, "k")["txt"] == training_sample(0, 1, 3, 64, "k")["txt"]


def test_training_data_has_no_held_out_combination() -> None:
    for index in range(300):
        things = json.loads(training_sample(0, 1, index, 32, "k")["json"])["scene"]["things"]
        assert not {(thing["colour"], thing["shape"]) for thing in things} & set(HELD_OUT)


@pytest.mark.parametrize("dataset", CLASSES)
def test_classes_take_turns(dataset: str) -> None:
    classes = len(CLASSES[dataset])
    samples = [evaluation_sample(0, dataset, index, 32) for index in range(classes + 2)]
    assert [int(sample["cls"]) for sample in samples] == [*range(classes), 0, 1]
    assert all(set(sample) == {"jpg", "cls"} for sample in samples)


def test_class_names_fit_every_template() -> None:
    assert len(TEMPLATES) > 3
    for template in TEMPLATES:
        assert template.count("{c}") == 1
        for classes in CLASSES.values():
            assert len({template.replace("{c}", str(combination)) for combination in classes}) == len(classes)


def test_retrieval_pictures_have_three_different_captions() -> None:
    for index in range(50):
        captions = evaluation_sample(0, RETRIEVAL, index, 32)["txt"].decode().split("\n")
        assert len(set(captions)) == 3
        assert all(4 <= len(caption.split()) <= 60 for caption in captions)


def test_no_two_sets_draw_the_same_picture() -> None:
    pictures = [evaluation_sample(0, dataset, index, 32)["jpg"] for dataset in EVALUATION_SETS for index in range(20)]
    pictures += [training_sample(0, 1, index, 32, "k")["jpg"] for index in range(20)]
    assert len(set(pictures)) == len(pictures)
