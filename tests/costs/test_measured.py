"""`growclip plan --measured`: the speed of a run that training itself wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from growclip_ds.cli.program import main
from growclip_ds.config.config import load_config
from growclip_ds.costs.making import Request, make_plan
from growclip_ds.run.folder import RunFolder
from tests.pipeline_runs import SUBSET


def test_the_hours_of_a_run_are_those_that_it_took(
    finished_data: Path, finished_run: RunFolder, tmp_path: Path
) -> None:
    """Of its first growth step: the speed is that of the last one which is there."""
    data, run = finished_data, shutil.copytree(finished_run.path, tmp_path / "run")
    shutil.rmtree(run / "step_2")
    record = json.loads((run / "step_1" / "train" / "phase.json").read_text())
    assert record["pairs_seen"] == 2 * SUBSET
    samples = [f"data.subsets.{n}.samples={SUBSET}" for n in range(2)]
    plan = make_plan(load_config(data / "config.yaml", samples), Request(gpus=2, measured=run))
    assert plan.speed is not None
    assert f"measured: {run}, growth step 1" in plan.speed.source
    assert record["device"] in plan.speed.source
    # The same step again takes as long: two epochs of a subset on two ranks.
    assert plan.device_hours(plan.cheapest.phases[0]) == pytest.approx(2 * record["seconds"] / 3600)
    arguments = ["plan", "--config", str(data / "config.yaml"), "--gpus", "2", "--measured", str(run), *samples]
    assert main(arguments) == 0
