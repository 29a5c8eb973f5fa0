"""docs/configuration.md: it has every setting, as it is now."""

from __future__ import annotations

import re

import pytest

from docs.write_configuration import PAGE, page
from growclip_ds.config.config import Config
from growclip_ds.run.changes import MAY_CHANGE


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_every_key_is_there_with_what_it_may_hold_and_what_it_means() -> None:
    rows = re.findall(r"^\| `(.+?)` \| (•?) +\| (.*?) \| (.*?) \| (.+?) \|$", page(), re.MULTILINE)
    settings = {key: (changes, kind, default, meaning) for key, changes, kind, default, meaning in rows}
    for name in Config.model_fields:
        assert name in settings or any(key.startswith(f"{name}.") for key in settings), name
    assert all(kind and meaning for _, kind, _, meaning in settings.values())
    assert settings["growth.beta"] == (
        "", "a number, at least 0", "`0.3`", "β of Eq. 5: factor of the old weights",
    )  # fmt: skip
    assert settings["data.subsets.0.shards"][2] == "required"


@pytest.mark.parametrize("key", MAY_CHANGE)
def test_what_may_change_under_a_run_is_marked(key: str) -> None:
    marked = re.findall(r"^\| `(.+?)` \| • ", page(), re.MULTILINE)
    assert key in marked or any(other.startswith(f"{key}.") for other in marked)
    assert "training.learning_rate" not in marked
