"""What a run opens before any training."""

from __future__ import annotations

import errno
from pathlib import Path
from unittest import mock

import pytest

from growclip_ds.config.config import load_config
from growclip_ds.config.deepspeed import load_deepspeed_config, resolve
from growclip_ds.errors import InputError
from growclip_ds.pipeline.pipeline import prepare_growth
from growclip_ds.pipeline.prepare import prepare
from growclip_ds.run.folder import RunFolder
from tests.pipeline_runs import write_data


def test_sets_are_opened_under_their_names_and_on_their_splits(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    selection = data / "scenes/eval/scenes_selection"
    (selection / "test").rename(selection / "val")
    overrides = ("selection.dataset.split=val", "evaluation.datasets.0.name=Objects")
    (tmp_path / "run").mkdir()
    inputs = prepare(load_config(data / "config.yaml", overrides), RunFolder(tmp_path / "run"), last_step=1)
    assert [one.name for one in inputs.evaluation_sets] == ["Objects", "scenes_retrieval"]
    assert inputs.selection_set is not None
    assert inputs.selection_set.name == "scenes_selection-val"  # as phase.json then calls it
    assert inputs.selection_set.shards == (str(selection / "val/0.tar"),)


def test_a_full_disk_before_any_training_is_the_users_to_mend(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", steps=1)
    config = load_config(data / "config.yaml")
    deepspeed = resolve(load_deepspeed_config(data / "zero2.json"), config, world_size=1)
    full = OSError(errno.ENOSPC, "No space left on device")
    for write in ("pipeline.prepare.write_subsets", "data.tokens.Tokenizer.save", "run.folder.write_json"):
        with (
            mock.patch(f"growclip_ds.{write}", side_effect=full),
            pytest.raises(InputError, match=r"cannot be written: .*No space left on device; make room, then start"),
        ):
            prepare_growth(config, deepspeed, tmp_path / write)
