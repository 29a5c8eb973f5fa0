"""Whole runs on two ranks: what they leave on disk, going on where they stopped, and the same bits again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from growclip_ds import Architecture, GrowthSpace, composite_metric
from growclip_ds.checkpoint.checkpoint import Checkpoint, load_model
from growclip_ds.cli.program import main
from growclip_ds.data.subsets import read_subsets
from growclip_ds.data.tokens import load_tokenizer
from growclip_ds.evaluation import ModelEncoder, evaluate, load_evaluation_set
from growclip_ds.growth.phases import Phase
from growclip_ds.monitor import read_summaries
from growclip_ds.reporting import make_report, read_runs
from growclip_ds.run.folder import RunFolder
from tests.group import Groups, RankError
from tests.pipeline_runs import PHASES, STEPS, SUBSET, TIMES, assert_same_weights, grow, read_weights


@pytest.fixture(scope="module")
def data(finished_data: Path) -> Path:
    return finished_data


@pytest.fixture(scope="module")
def run(finished_run: RunFolder) -> RunFolder:
    return finished_run


def test_every_phase_leaves_its_weights_and_record(run: RunFolder) -> None:
    records = list(run.records())
    assert [(record.step, record.phase) for record in records] == PHASES
    first = 0
    for record in records:
        Checkpoint(run.weights(record.step, record.phase)).verify()
        assert record.samples == SUBSET * record.step
        assert record.first_iteration == first
        epochs = 2 if record.phase is Phase.TRAIN else 1
        assert record.training is not None
        assert (record.training.epochs, record.training.pairs_seen) == (epochs, epochs * record.samples)
        assert record.iterations == epochs * record.samples // 16
        first += record.iterations
    assert [subset.samples for subset in read_subsets(run.data_file)] == [SUBSET] * STEPS


def test_selection_compares_all_candidates_by_equation_7(run: RunFolder, data: Path) -> None:
    base = Checkpoint(run.weights(1, Phase.TRAIN)).architecture
    space = GrowthSpace(base, 1, 1, 1)
    supernet = load_model(run.weights(2, Phase.SELECTION))
    assert supernet.architecture == space.supernet
    record = run.record(2, Phase.SELECTION)
    candidates = record.candidates
    assert len(candidates) == 64
    assert {row.architecture for row in candidates} == set(space)
    sizes = supernet.sizes
    for row in candidates:
        parameters = sizes.parameters_of(row.architecture)
        assert row.parameters == parameters
        expected = composite_metric(row.accuracy, parameters, sizes.parameters_of(space.supernet), SUBSET, 2 * SUBSET)
        assert row.metric == pytest.approx(expected)
    metrics = [row.metric for row in candidates]
    assert metrics == sorted(metrics, reverse=True)
    # Two of them evaluated alone, on one process, from the weights on disk.
    dataset = load_evaluation_set(data / "scenes/eval/scenes_selection")
    tokenizer = load_tokenizer(run.tokenizer, sizes.context_length)
    for row in (candidates[0], candidates[-1]):
        alone = ModelEncoder(supernet.extract(row.architecture))
        assert evaluate(alone, dataset, tokenizer, 32, 16)[0].accuracy == pytest.approx(row.accuracy)
    assert Checkpoint(run.weights(2, Phase.TRAIN)).architecture == candidates[0].architecture


def test_reported_accuracy_is_that_of_the_weights_on_disk(run: RunFolder, data: Path) -> None:
    model = load_model(run.weights(2, Phase.TRAIN))
    tokenizer = load_tokenizer(run.tokenizer, model.sizes.context_length)
    results = run.record(2, Phase.TRAIN).evaluation
    assert len(results) == 2
    for reported in results:
        dataset = load_evaluation_set(data / "scenes/eval" / reported.dataset)
        assert evaluate(ModelEncoder(model), dataset, tokenizer, 32, 16)[0] == reported


def test_summary_and_curves(run: RunFolder) -> None:
    first, second = read_summaries(run)
    assert second.before == first.after
    assert set(second.after) == {"scenes_objects", "scenes_retrieval"}
    assert second.candidates[0].architecture == second.architecture
    files = list(run.tensorboard.rglob("events.*"))
    steps = []
    for file in files:
        events = EventAccumulator(str(file)).Reload()
        if "train/loss" in events.Tags()["scalars"]:
            steps += [event.step for event in events.Scalars("train/loss")]
    assert sorted(steps) == list(range(1, sum(record.iterations for record in run.records()) + 1))


def test_a_finished_run_is_left_alone(run: RunFolder, data: Path, group: Groups, tmp_path: Path) -> None:
    again = shutil.copytree(run.path, tmp_path / "again")
    before = {path: path.stat().st_mtime_ns for path in again.glob("step_*/**/*")}
    assert len(before) > 20
    group(2).run(grow, data, again)
    assert {path: path.stat().st_mtime_ns for path in again.glob("step_*/**/*")} == before


def test_a_run_goes_on_with_its_first_unfinished_phase(
    run: RunFolder, data: Path, group: Groups, tmp_path: Path
) -> None:
    """Stopped in the middle of a phase and started again, at the same seeds: the same weights to the bit."""
    again = RunFolder(tmp_path / "again")
    shutil.copytree(run.path, again.path)
    shutil.rmtree(again.phase(2, Phase.TRAIN))
    shutil.rmtree(again.weights(2, Phase.SELECTION))
    again.record_file(2, Phase.SELECTION).unlink()
    stamp = again.record_file(2, Phase.FINETUNE).stat().st_mtime_ns
    group(2).run(grow, data, again.path)
    assert again.record_file(2, Phase.FINETUNE).stat().st_mtime_ns == stamp
    assert_same_weights(run, again)


def test_a_run_that_begins_with_an_exported_model_is_the_run_that_it_came_from(
    run: RunFolder, data: Path, group: Groups, tmp_path: Path
) -> None:
    """The next growth step has the same weights, to the bit."""
    start, again = tmp_path / "exported", RunFolder(tmp_path / "again")
    assert main(["export", str(run.path), str(start), "--step", "1"]) == 0
    given = {"model.start": start, "data.tokenizer.name_or_path": start, "data.tokenizer.vocab_size": "null"}
    overrides = tuple(f"{key}={value}" for key, value in given.items())
    group(2).run(grow, data, again.path, 2, None, overrides)
    assert_same_weights(run, again)
    assert [record.start for record in again.records()] == [str(start), None, None, None]
    with pytest.raises(RankError, match="has finished growth step 1, but the run ends with step 1: append"):
        group(2).run(grow, data, tmp_path / "short", 2, None, (*overrides, "growth.steps=1"))


def test_what_is_trained_is_not_trained_again(run: RunFolder, data: Path, group: Groups, tmp_path: Path) -> None:
    """Stopped while it evaluates: weights stay as they are, and the phase ends with the same record."""
    again = RunFolder(tmp_path / "again")
    shutil.copytree(run.path, again.path)
    shutil.rmtree(again.phase(2, Phase.TRAIN))
    again.record_file(2, Phase.SELECTION).unlink()
    stamp = (again.weights(2, Phase.SELECTION) / "weights.json").stat().st_mtime_ns
    group(2).run(grow, data, again.path)
    assert (again.weights(2, Phase.SELECTION) / "weights.json").stat().st_mtime_ns == stamp
    ours, theirs = (folder.record(2, Phase.SELECTION) for folder in (run, again))
    assert replace(ours, **TIMES) == replace(theirs, **TIMES)
    assert_same_weights(run, again)


def test_weights_of_a_candidate_that_was_not_selected_are_not_gone_on_with(
    run: RunFolder, data: Path, group: Groups, tmp_path: Path
) -> None:
    """Whoever lost the selection's record, and selected anew, may have selected something else."""
    again = RunFolder(tmp_path / "again")
    shutil.copytree(run.path, again.path)
    again.record_file(2, Phase.TRAIN).unlink()
    selection = again.record_file(2, Phase.SELECTION)
    record = json.loads(selection.read_text())
    selected = record["candidates"][0]
    selected["architecture"]["image_blocks"] = 3 - selected["architecture"]["image_blocks"]
    selection.write_text(json.dumps(record))
    with pytest.raises(
        RankError, match=r"train/weights is of .*, but the train phase of growth step 2 trains .* remove"
    ):
        group(2).run(grow, data, again.path)


def test_growth_steps_one_at_a_time(run: RunFolder, data: Path, group: Groups, tmp_path: Path) -> None:
    """Step by step in runs of their own gives the bits of the run in one; data of later steps need not be there.

    It may still change: the path of the second subset is first mistyped, then right.
    """
    stepwise = RunFolder(tmp_path / "stepwise")
    mistyped = "data.subsets.1.shards=nowhere"
    group(2).run(grow, data, stepwise.path, 2, 1, (mistyped,))
    with pytest.raises(RankError, match="data subset 's2'"):
        group(2).run(grow, data, stepwise.path, 2, 2, (mistyped,))
    # Nor is one fixed that `growclip data add` has counted, before a growth step uses it.
    group(2).run(grow, data, stepwise.path, 2, 1, (mistyped, "data.subsets.1.samples=7"))
    group(2).run(grow, data, stepwise.path, 2, 2)
    assert_same_weights(run, stepwise)


def test_steps_out_of_order_and_other_runs_are_refused(
    run: RunFolder, data: Path, group: Groups, tmp_path: Path
) -> None:
    with pytest.raises(RankError, match="growth step 2 needs step 1"):
        group(2).run(grow, data, tmp_path / "new", 2, 2)
    with pytest.raises(RankError, match=r"the run has growth steps 1 to 2, as set by data\.subsets"):
        group(2).run(grow, data, tmp_path / "new", 2, 3)
    with pytest.raises(RankError, match=r"growth\.max_parameters is 1,000, but model\.base \(.*\) has"):
        group(2).run(grow, data, tmp_path / "new", 2, None, ("growth.max_parameters=1000",))
    with pytest.raises(RankError, match=r"(?s)another configuration.*training\.learning_rate: 0\.005 there, 0\.1 now"):
        group(2).run(grow, data, run.path, 2, None, ("training.learning_rate=0.1",))


@pytest.mark.parametrize("stage", [1, 3])
def test_other_stages_and_accumulation_train_the_same_model(
    run: RunFolder, data: Path, group: Groups, tmp_path: Path, stage: int
) -> None:
    other = RunFolder(tmp_path / "run")
    group(2).run(grow, data, other.path, stage, 1, ("training.micro_batch_size=4",))
    ours, theirs = read_weights(run, 1, Phase.TRAIN), read_weights(other, 1, Phase.TRAIN)
    for name, tensor in ours.items():
        if not name.endswith("qkv.bias"):  # keys' biases have no gradient but rounding errors
            assert (theirs[name] - tensor).norm() <= 1e-3 * tensor.norm(), name


def test_frozen_dimensions_limits_and_held_out_pairs(data: Path, group: Groups, tmp_path: Path) -> None:
    """A space of few candidates, compared on pairs held out of training, at ZeRO 3, with offloaded activations."""
    run = RunFolder(tmp_path / "run")
    overrides = (
        "selection.dataset=null",
        "selection.held_out=6",
        "growth.frozen=[conv_layers, text_blocks, shared_blocks]",
        "growth.max_parameters=700000",
        "training.activation_checkpointing=offload",
        "training.optimizer=adamw",
        "epochs.supernet=0",
        "evaluation.every_epochs=1",
    )
    group(2).run(grow, data, run.path, 3, None, overrides)
    record = run.record(2, Phase.SELECTION)
    assert record.selection_set == "held-out pairs"
    rows = [row.architecture for row in record.candidates]
    model = load_model(run.weights(2, Phase.TRAIN))
    space = GrowthSpace(Architecture(0, 1, 1, 1, 1, 0), 1, 1, 1, ["conv_layers", "text_blocks", "shared_blocks"])
    assert set(rows) == {c for c in space if model.sizes.parameters_of(c) <= 700_000}
    assert 1 < len(rows) < len(space) == 8
    finetuned, trained = run.record(2, Phase.FINETUNE), run.record(2, Phase.TRAIN)
    assert finetuned.iterations == 0
    assert [point.iteration for point in finetuned.curve] == [0]  # what the supernet has inherited
    assert trained.iterations == 2 * 2 * (SUBSET - 6) // 16 + 1
    assert trained.curve[-1].iteration == trained.iterations
    figures = {figure.file for figure in make_report(read_runs([run.path])).figures}
    assert figures >= {"accuracy_step_1.png", "accuracy_step_2.png"}

    run.record_file(2, Phase.TRAIN).unlink()  # stopped while it evaluated
    group(2).run(grow, data, run.path, 3, None, overrides)
    events = EventAccumulator(str(run.tensorboard / "training")).Reload()
    curve = next(name for name in events.Tags()["scalars"] if name.startswith("zero_shot_in_training/"))
    assert max(point.step for point in events.Scalars(curve)) == trained.first_iteration + trained.iterations
    assert max(text.step for text in events.Tensors("phase/started/text_summary")) == trained.first_iteration + 1


def test_phase_records_are_json_that_a_script_can_read(run: RunFolder) -> None:
    for step, phase in PHASES:
        record = json.loads(run.record_file(step, phase).read_text())
        assert {"samples", "parameters", "iterations", "seconds", "broken_samples"} <= set(record)
