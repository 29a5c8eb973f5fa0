"""Numbers gone wrong: skipped on all ranks, named, described, and not put up with for ever."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from growclip_ds.config.sections import HealthSection
from growclip_ds.distributed import rank
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import Phase
from growclip_ds.run.folder import RunFolder
from growclip_ds.training import iteration as iterations
from growclip_ds.training.health import FEWEST_LOSSES, Health
from growclip_ds.training.iteration import Outcome
from tests.group import Groups, RankError
from tests.pipeline_runs import grow

GOOD = Outcome(2.0, 1.0, 14.0, False)


def health(folder: Path, notes: list[str] | None = None, **section: Any) -> Health:
    return Health(HealthSection(**section), folder, ([] if notes is None else notes).append)


def engine(searches: bool = False) -> Any:
    return SimpleNamespace(
        searches_loss_scale=searches, loss_scale=None, loss_scale_before=None, module=torch.nn.Linear(2, 2)
    )


def check(judged: Health, outcome: Outcome, repeated: Outcome | None = None, searches: bool = False) -> Outcome:
    place = judged.skipped + 1
    return judged.check(outcome, lambda: repeated or outcome, engine(searches), place, ["a", "b"])


def test_the_run_stops_after_so_many_in_a_row(tmp_path: Path) -> None:
    judged, bad = health(tmp_path, max_bad_iterations=3), Outcome(math.nan, math.inf, 14.0, True)
    for outcome in (bad, bad, GOOD, bad, bad):
        check(judged, outcome)
    assert (judged.skipped, judged.in_a_row) == (4, 2)
    kept = judged.state
    with pytest.raises(InputError, match=r"3 iterations in a row .*max_bad_iterations.* the last is 5: the loss"):
        check(judged, bad)
    again = health(tmp_path, max_bad_iterations=3)
    again.state = json.loads(json.dumps(kept))
    with pytest.raises(InputError, match="3 iterations in a row"):
        check(again, bad)
    report = json.loads((tmp_path / "iteration_000000001.json").read_text())
    assert report == {
        "iteration": 1,
        "what": "the loss is not finite",
        "loss": "nan",
        "tensor": "the loss",
        "keys": [["a", "b"]],
    }


def test_the_search_for_a_loss_scale_does_not_count(tmp_path: Path) -> None:
    judged = health(tmp_path, max_bad_iterations=1)
    overflow = Outcome(2.0, math.inf, 14.0, True)
    for _ in range(30):
        check(judged, overflow, searches=True)
    assert (judged.skipped, judged.in_a_row) == (30, 0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="1 iterations in a row"):
        check(judged, overflow)
    with pytest.raises(InputError, match="2 iterations in a row"):  # a loss that is NaN no loss scale mends
        check(judged, Outcome(math.nan, math.inf, 14.0, True), searches=True)


def test_what_goes_well_the_second_time_has_gone_well(tmp_path: Path) -> None:
    notes: list[str] = []
    judged = health(tmp_path, notes, max_bad_iterations=1)
    assert check(judged, Outcome(math.nan, math.inf, 14.0, True), GOOD) == GOOD
    assert (judged.skipped, judged.in_a_row) == (0, 0)
    assert notes == ["iteration 1: gradients were not finite, but were finite when it was repeated"]


def test_spikes_are_measured_by_the_median(tmp_path: Path) -> None:
    unlimited = health(tmp_path)  # as it is by default, whatever the losses
    unlimited.state = {"skipped": 0, "in_a_row": 0, "losses": [1.0] * FEWEST_LOSSES}
    assert unlimited.loss_limit == math.inf
    notes: list[str] = []
    judged = health(tmp_path, notes, spike_factor=2.0)
    for number in range(FEWEST_LOSSES):
        assert judged.loss_limit == math.inf
        check(judged, GOOD._replace(loss=1.0 + number % 2))
    assert judged.loss_limit == 3.0
    check(judged, Outcome(3.5, math.inf, 14.0, True))
    assert judged.loss_limit == 3.0  # a spike is none of the losses that count
    assert notes[0].startswith("iteration 1: no update, the loss is 3.500, health.spike_factor allows 3.000; ")
    stopping = health(tmp_path, spike_factor=2.0, spike_action="stop")
    stopping.state = judged.state
    with pytest.raises(InputError, match=r"health\.spike_factor allows 3\.000; .* resumes from its last checkpoint"):
        check(stopping, Outcome(3.5, math.inf, 14.0, True))


@pytest.mark.parametrize("searches", [False, True])
def test_a_spike_leaves_the_loss_scale_as_it_was(tmp_path: Path, searches: bool) -> None:
    """DeepSpeed takes the NaN by which the update is left out for an overflow, and lowers the scale."""
    judged = health(tmp_path, spike_factor=2.0)
    judged.state = {"skipped": 0, "in_a_row": 0, "losses": [1.0] * FEWEST_LOSSES}
    scaled = engine(searches)
    scaled.loss_scale, scaled.loss_scale_before = {"cur_scale": 512.0}, {"cur_scale": 1024.0}
    spike = Outcome(3.5, math.inf, 14.0, True)
    judged.check(spike, lambda: spike, scaled, 1, [])
    assert scaled.loss_scale == {"cur_scale": 1024.0}
    assert judged.skipped == 1


def poison(data: Path, run: Path, first: int, last: int, options: tuple[str, ...], stage: int, spike: bool) -> str:
    """Grows a step in which, in some iterations, one block's output is infinite on rank 1, or the loss is huge."""
    import contextlib
    import io

    count = 0

    def train_iteration(engine: Any, *args: Any, **more: Any) -> Outcome:
        nonlocal count
        count += 1  # an iteration that is looked at again is counted twice
        if not first <= count <= last:
            return iterations.train_iteration(engine, *args, **more)
        if spike:

            def large(*features: Any, **more: Any) -> Any:
                return 50 * iterations_loss(*features, **more)

            with mock.patch.object(iterations, "contrastive_loss", large):
                return iterations.train_iteration(engine, *args, **more)
        block = dict(engine.module.named_modules())["text.blocks.0"]
        hook = block.register_forward_hook(
            lambda module, inputs, output: output * math.inf if rank() == 1 else output, prepend=True
        )
        try:
            return iterations.train_iteration(engine, *args, **more)
        finally:
            hook.remove()

    iterations_loss = iterations.contrastive_loss
    output = io.StringIO()
    with (
        mock.patch("growclip_ds.training.trainer.train_iteration", train_iteration),
        contextlib.redirect_stdout(output),
    ):
        grow(data, run, stage, 1, ("evaluation.datasets=[]", *options))
    return output.getvalue()


@pytest.fixture(scope="module")
def data(finished_data: Path) -> Path:
    return finished_data


@pytest.mark.parametrize(("stage", "micro_batch"), [(1, 8), (2, 4), (3, 8)])
def test_the_first_bad_tensor_is_named_and_the_run_goes_on(
    data: Path, group: Groups, tmp_path: Path, stage: int, micro_batch: int
) -> None:
    run = RunFolder(tmp_path / "run")
    options = (f"training.micro_batch_size={micro_batch}",)
    output = group(2).run(poison, data, run.path, 3, 4, options, stage, False)[0]
    assert "iteration 3: no update, the output of text.blocks.0 on rank 1 is not finite" in output
    (file,) = run.bad_iterations(1, Phase.TRAIN).iterdir()
    report = json.loads(file.read_text())
    assert report["tensor"] == "the output of text.blocks.0 on rank 1"
    assert [len(keys) for keys in report["keys"]] == [8, 8]
    record = run.record(1, Phase.TRAIN)
    assert (record.iterations, record.training.skipped_iterations) == (6, 1)


def test_the_run_stops_with_the_last_checkpoint_as_it_was(data: Path, group: Groups, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    options = ("health.max_bad_iterations=2", "checkpoint.every_iterations=2")
    with pytest.raises(RankError, match=r"2 iterations in a row without an update, .* the last is 4: the output of te"):
        group(2).run(poison, data, run.path, 3, 100, options, 2, False)
    (checkpoint,) = run.checkpoints(1, Phase.TRAIN).glob("iteration_*")
    assert checkpoint.name == "iteration_000000002"


def test_a_loss_that_is_a_spike_changes_nothing(data: Path, group: Groups, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    options = ("epochs.first=8", "health.spike_factor=5.0")  # 24 iterations
    output = group(2).run(poison, data, run.path, 22, 22, options, 2, True)[0]
    assert "iteration 22: no update, the loss is" in output
    assert run.record(1, Phase.TRAIN).training.skipped_iterations == 1
