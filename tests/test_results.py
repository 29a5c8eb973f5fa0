"""What evaluations find: the figure that stands for each, what means are over, and the way to JSON and back."""

from __future__ import annotations

import json

import pytest

from growclip_ds.results import RetrievalResult, averaged, result_from_json
from tests.records import classified, retrieved


def test_the_figure_of_retrieval_is_the_mean_of_both_directions() -> None:
    assert RetrievalResult("pairs", 10, 20, {1: 30.0, 5: 90.0}, {1: 10.0, 5: 80.0}).accuracy == 20.0


def test_means_are_over_classification_where_there_is_any() -> None:
    things, others, pairs = classified("things", 10.0), classified("others", 20.0), retrieved("pairs", 30.0)
    assert averaged([things, pairs, others]) == [things, others]
    assert averaged(iter([pairs])) == [pairs]
    assert averaged([]) == []


@pytest.mark.parametrize("result", [classified("things", 12.5), retrieved("pairs", 7.25)])
def test_json_and_back(result: object) -> None:
    assert result_from_json(json.loads(json.dumps(result.to_json()))) == result


def test_an_impossible_accuracy_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the accuracy on things is 120\.0 percent"):
        result_from_json(classified("things", 120.0).to_json())
