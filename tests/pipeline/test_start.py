"""A run that begins with an exported model: what it finds in its folder, and which models it takes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from growclip_ds.architecture import Architecture
from growclip_ds.checkpoint.checkpoint import Checkpoint
from growclip_ds.cli.program import main
from growclip_ds.config.config import load_config
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import Phase
from growclip_ds.monitor import read_summaries
from growclip_ds.pipeline.prepare import RunInputs
from growclip_ds.pipeline.start import adopt
from growclip_ds.run.folder import RunFolder
from growclip_ds.run.opening import open_run
from growclip_ds.run.records import PhaseRecord
from tests.evaluation.models import tokenizer
from tests.hub.models import write_recorded_run
from tests.records import phase_record


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model exported after two growth steps, beside its run."""
    folder = tmp_path_factory.mktemp("start")
    write_recorded_run(folder / "run")
    assert main(["export", str(folder / "run"), str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture
def inputs(exported: Path) -> RunInputs:
    sizes = Checkpoint(exported.parent / "run" / "step_2" / "train" / "weights").sizes
    return RunInputs(cast(Any, None), tokenizer(), sizes, [], None)


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> RunFolder:
    """A run that has just begun."""
    return open_run(tmp_path / "new", load_config(exported.parent / "run" / "config.yaml"))


def test_the_run_is_as_if_it_had_trained_the_model(exported: Path, folder: RunFolder, inputs: RunInputs) -> None:
    assert adopt(str(exported), folder, inputs) == (2, Architecture(1, 1, 1, 1, 2, 1))
    ours = Checkpoint(folder.weights(2, Phase.TRAIN))
    theirs = Checkpoint(RunFolder(exported.parent / "run").weights(2, Phase.TRAIN))
    names = sorted(theirs.names)
    assert ours.digest(names) == theirs.digest(names)
    folder.require_step_before(3)
    summaries = read_summaries(folder)
    assert [(one.step, one.samples, one.parameters) for one in summaries] == [(1, 1000, 100_000), (2, 3000, 200_000)]
    assert summaries[0].architecture == Architecture(1, 1, 1, 1, 1, 1)
    assert folder.iterations_before(3, Phase.FINETUNE) == 0


def test_it_goes_on_where_it_was_interrupted_and_without_the_exported_folder(
    exported: Path, folder: RunFolder, inputs: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = str(shutil.copytree(exported, tmp_path / "start"))

    finish = RunFolder.finish
    for last in (2, 1):  # before the records of both steps, and between them

        def killed(run: RunFolder, record: PhaseRecord, last: int = last) -> None:
            if record.step == last:
                raise KeyboardInterrupt
            finish(run, record)

        with monkeypatch.context() as patched:
            patched.setattr(RunFolder, "finish", killed)
            with pytest.raises(KeyboardInterrupt):
                adopt(start, folder, inputs)
        assert not folder.is_finished(1, Phase.TRAIN)
    assert adopt(start, folder, inputs)[0] == 2
    shutil.rmtree(start)
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    assert adopt(start, folder, inputs)[0] == 2
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before
    folder.finish(phase_record(3))  # which the run has trained itself
    assert adopt(start, folder, inputs)[0] == 2


def test_a_model_of_unknown_history_counts_as_the_first_growth_steps(
    exported: Path, folder: RunFolder, inputs: RunInputs, tmp_path: Path
) -> None:
    start = shutil.copytree(exported, tmp_path / "start")
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps(config | {"growth": config["growth"][1:]}))
    with pytest.raises(InputError, match=r"has growth steps \[2\]; those from 1 on are needed"):
        adopt(str(start), folder, inputs)
    (start / "config.json").write_text(json.dumps(config | {"growth": []}))
    last, architecture = adopt(str(start), folder, inputs)
    assert (last, architecture) == (1, Architecture(1, 1, 1, 1, 2, 1))
    parameters = inputs.sizes.parameters_of(architecture)
    assert folder.record(1, Phase.TRAIN).parameters == parameters


def test_only_a_model_that_fits_the_run_is_taken(exported: Path, folder: RunFolder, inputs: RunInputs) -> None:
    other = replace(inputs, sizes=replace(inputs.sizes, image_size=64))
    with pytest.raises(
        InputError, match=r"model\.start, .*, has image_size 16, but model\.image_size is 64; set it to 16"
    ):
        adopt(str(exported), folder, other)
    words = tokenizer()
    words.end_of_text -= 1
    with pytest.raises(InputError, match=r"use the model's own tokenizer \(data\.tokenizer\.name_or_path="):
        adopt(str(exported), folder, replace(inputs, tokenizer=words))
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        adopt(str(exported.parent), folder, inputs)
    assert not list(folder.path.glob("step_*"))


def test_only_growclip_grows(exported: Path) -> None:
    overrides = [f"model.start={exported}", "method=twp"]
    with pytest.raises(InputError, match=r"model\.start is a GrowCLIP to grow, but method is twp; leave it out"):
        load_config(exported.parent / "run" / "config.yaml", overrides)
