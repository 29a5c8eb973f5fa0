"""What a run opens before any training."""

from __future__ import annotations

from pathlib import Path

from growclip_ds.config.config import load_config
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
