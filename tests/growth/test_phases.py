"""Which phases growth steps have: the table of docs/baselines.md, and what is left out of it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from growclip_ds.config.config import Config
from growclip_ds.growth.phases import phase_epochs

DATA = {"subsets": [{"name": f"s{i}", "shards": f"{i}"} for i in range(3)], "tokenizer": {"vocab_size": 300}}


def config(method: str = "growclip", **sections: Any) -> Config:
    return Config.model_validate({"method": method, "data": DATA, **sections})


def epochs(run: Config, step: int) -> dict[str, int]:
    return {str(phase): length for phase, length in phase_epochs(run, step).items()}


def test_the_papers_growth_steps() -> None:
    assert epochs(config(), 1) == {"train": 30}
    assert list(epochs(config(), 2).items()) == [("finetune", 2), ("selection", 2), ("train", 26)]
    for method in ("tfs", "twp", "sap", "msclip"):
        assert epochs(config(method), 1) == epochs(config(method), 3) == {"train": 30}
    assert epochs(config("nas"), 1) == {"train": 30}
    assert list(epochs(config("nas"), 2).items()) == [("search", 30), ("train", 30)]


def test_other_methods_train_as_long_as_growclip_unless_told_otherwise() -> None:
    lengths = {"first": 7, "supernet": 1, "selection": 2, "selected": 3}
    assert [epochs(config("tfs", epochs=lengths), step) for step in (1, 2)] == [{"train": 7}, {"train": 6}]
    assert epochs(config("nas", epochs=lengths), 3) == {"search": 6, "train": 6}
    told = config("nas", epochs=lengths, baselines={"epochs": 4})
    assert [epochs(told, step) for step in (1, 2)] == [{"train": 4}, {"search": 4, "train": 4}]


@pytest.mark.parametrize(
    ("ablation", "expected"),
    [
        ({"pim_supernet": False, "pim_selected": False}, {"finetune": 2, "selection": 2, "train": 26}),
        ({"finetuning": False}, {"selection": 2, "train": 28}),
        ({"selection": False}, {"finetune": 2, "train": 28}),
        ({"grow_only": "text_heads"}, {"finetune": 2, "train": 28}),
        ({"selection": False, "finetuning": False}, {"train": 30}),
    ],
)
def test_epochs_of_what_is_left_out_go_to_the_last_phase(ablation: dict[str, Any], expected: dict[str, int]) -> None:
    assert epochs(config(ablation=ablation), 2) == expected
    assert sum(expected.values()) == 30
    assert epochs(config(ablation=ablation), 1) == {"train": 30}


CONVOLUTIONS, SHARED = {"conv_layers": 1}, {"shared_blocks": 1}


@pytest.mark.parametrize(
    ("method", "sections", "message"),
    [
        ("tfs", {"ablation": {"selection": False}}, "ablation changes growth steps of growclip, but method is tfs"),
        ("sap", {"baselines": {"architecture": CONVOLUTIONS}}, "is not a CLIP's.*or baselines.model to growclip"),
        ("tfs", {"baselines": {"architecture": SHARED}}, "is not a CLIP's"),
        ("msclip", {"baselines": {"architecture": CONVOLUTIONS}}, "shares nothing; msclip needs shared_blocks"),
        ("msclip", {"baselines": {"start": "folder"}}, "baselines.start is a CLIP's weights"),
        ("twp", {"baselines": {"start": "folder", "model": "growclip"}}, "baselines.start is a CLIP's weights"),
    ],
)
def test_what_a_method_has_not(method: str, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(method, **sections)
    config("nas", **{name: section for name, section in sections.items() if name == "baselines"})  # does not matter
