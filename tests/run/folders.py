"""Configurations and finished phases for tests of a run's folder."""

from __future__ import annotations

from typing import Any

from growclip_ds.config.config import Config
from growclip_ds.growth.phases import Phase
from growclip_ds.run.folder import RunFolder
from tests.records import phase_record


def config(subsets: int = 2, **sections: Any) -> Config:
    listed = [{"name": f"s{i}", "shards": f"shards/{i}"} for i in range(subsets)]
    data = {"subsets": listed, "tokenizer": {"vocab_size": 1000}, **sections.pop("data", {})}
    return Config.model_validate({"data": data, **sections})


def finish(folder: RunFolder, step: int, phase: Phase, **record: Any) -> None:
    folder.weights(step, phase).mkdir(parents=True)
    folder.finish(phase_record(step, phase, **record))
