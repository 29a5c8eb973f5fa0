from __future__ import annotations

from typing import Any

import pytest

from growclip_ds.config.config import Config
from growclip_ds.run.changes import differences, forbidden_changes, may_change


def config(**sections: Any) -> Config:
    subsets = [{"name": "first", "shards": "shards/first"}]
    data = {"subsets": subsets, "tokenizer": {"vocab_size": 1000}, **sections.pop("data", {})}
    return Config.model_validate({"data": data, **sections})


@pytest.fixture
def there() -> dict[str, Any]:
    return config().model_dump(mode="json")


def test_a_key_may_change_with_its_section():
    assert all(map(may_change, ("evaluation", "evaluation.datasets", "growth.steps")))
    assert not any(map(may_change, ("growth", "data.tokenizer", "growth.steps_more")))


def test_differences_name_the_innermost_key():
    old = {"a": {"b": 1, "gone": None}, "listed": [{"name": "x"}, {"name": "y"}], "numbers": [1, 2]}
    new = {"a": {"b": 2, "new": "z"}, "listed": [{"name": "x"}], "numbers": [1, 3]}
    assert list(differences(old, new)) == [
        ("a.b", "1", "2"),
        ("a.gone", "null", "not set"),
        ("a.new", "not set", '"z"'),
        ("listed.1", '{"name": "y"}', "not set"),
        ("numbers", "[1, 2]", "[1, 3]"),
    ]


def test_only_what_bears_on_the_weights_is_forbidden(there: dict[str, Any]):
    changed = config(seed=1, data={"workers": 0, "decoding": "exact"}, monitoring={"log_every": 3})
    assert forbidden_changes(there, config()) == []
    assert forbidden_changes(there, changed) == [("seed", "0", "1"), ("data.decoding", '"fast"', '"exact"')]


def test_settings_that_an_update_has_added_are_at_their_defaults(there: dict[str, Any]):
    del (
        there["ablation"],
        there["model"]["start"],
        there["data"]["decoding"],
        there["data"]["tokenizer"]["name_or_path"],
    )
    assert forbidden_changes(there, config()) == []
    changed = config(ablation={"selection": False}, data={"decoding": "exact"})
    assert sorted(forbidden_changes(there, changed)) == [
        ("ablation.selection", "true", "false"),
        ("data.decoding", '"fast"', '"exact"'),
    ]


def test_a_setting_that_is_gone_is_a_change(there: dict[str, Any]):
    there["growth"]["old_beta"] = there["growth"].pop("beta")
    assert forbidden_changes(there, config()) == [("growth.old_beta", "0.3", "not set")]
