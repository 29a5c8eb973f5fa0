"""The combinations: what is held out, and that the two sets of classes share nothing."""

from __future__ import annotations

from collections import Counter

import pytest

from growclip_ds.data.scenes.vocabulary import COLOURS, HELD_OUT, OBJECT_CLASSES, SELECTION_CLASSES, SHAPES, TRAINING


def test_every_combination_is_either_trained_on_or_held_out() -> None:
    assert len(COLOURS) == len(SHAPES) == 12
    assert len({*TRAINING, *HELD_OUT}) == len(TRAINING) + len(HELD_OUT) == 144


def test_the_set_that_selects_shares_no_class_with_the_set_that_is_reported() -> None:
    assert not set(OBJECT_CLASSES) & set(SELECTION_CLASSES)


@pytest.mark.parametrize("classes", [OBJECT_CLASSES, SELECTION_CLASSES])
def test_classes_have_every_colour_and_shape_equally_often_and_a_fifth_never_trained_on(classes) -> None:
    assert len(classes) == len(set(classes)) == 60
    assert set(Counter(combination.colour for combination in classes).values()) == {5}
    assert set(Counter(combination.shape for combination in classes).values()) == {5}
    assert len(set(classes) & set(HELD_OUT)) == 12
