"""The event files hold every point once, where it belongs, also after interruptions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from growclip_ds.growth.phases import Phase
from growclip_ds.monitor import RunMonitor
from growclip_ds.run.folder import RunFolder
from tests.monitor.runs import BASE, SETS, SIZES, SPEC, Progress, candidates, config, wait_for_the_next_second
from tests.records import classified, retrieved


def curves(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """Step and value of every point that TensorBoard shows, by tag."""
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, make_ndarray(event.tensor_proto).ravel().tolist()[0]) for event in accumulator.Tensors(tag)]
        for tag in accumulator.Tags()["tensors"]
    }


def test_curves_are_continuous_and_not_doubled(grown_run):
    folder, _ = grown_run
    training = curves(folder.tensorboard / "training")
    scalars = {tag for tag in training if tag.split("/")[0] in ("train", "speed", "memory")}
    assert scalars >= {
        "train/loss",
        "train/learning_rate",
        "train/logit_scale",
        "train/gradient_norm",
        "train/skipped",
        "speed/samples_per_second",
        "speed/data_wait_share",
        "memory/resident_gib",
    }
    for tag in scalars | {"phase/growth_step", "phase/number"}:
        assert [step for step, _ in training[tag]] == list(range(10, 161, 10)), tag
    assert [value for _, value in training["phase/growth_step"]] == [1] * 4 + [2] * 12
    assert [value for _, value in training["phase/number"]] == [3] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert training["train/loss"][5] == (60, pytest.approx(5 - 0.6))
    assert 0.01 < training["memory/resident_gib"][0][1] < 100


def test_phases_and_architectures_are_shown_where_they_begin(grown_run):
    folder, _ = grown_run
    training = curves(folder.tensorboard / "training")
    started = training["phase/started/text_summary"]
    assert [step for step, _ in started] == [1, 41, 81, 121]
    million = f"{SIZES.parameters_of(BASE) / 1e6:.2f} M"
    assert started[0][1].decode() == f"growth step 1, train: model {BASE}, {million} parameters"
    assert "growth step 2, selection: supernet (1, 2, 2, 2, 2, 1)" in started[2][1].decode()
    assert [step for step, _ in training["architecture/supernet"]] == [41, 81]
    assert [step for step, _ in training["architecture/model"]] == [1, 121]
    assert "grown from | 0 | 1 | 1 | 1 | 1 | 0" in training["architecture/model/text_summary"][1][1].decode()


def test_device_memory_is_the_most_of_each_phase(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    peak = [0]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peak[0])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peak.__setitem__(0, 0))
    monitor = RunMonitor(folder, config(), io.StringIO())
    for phase, first, gib in ((Phase.FINETUNE, 40, 3), (Phase.TRAIN, 80, 2)):
        monitor.start_phase(2, phase, SPEC, 40, first)
        peak[0] = max(peak[0], gib * 2**30)
        monitor.progress(Progress(10, 40))
    monitor.close()
    assert curves(folder.tensorboard / "training")["memory/device_gib"] == [(50, 3.0), (90, 2.0)]


def test_growth_steps_have_curves_of_their_own(grown_run):
    folder, _ = grown_run
    growth = curves(folder.tensorboard / "growth")
    for name in (*SETS, "mean"):
        assert growth[f"zero_shot/{name}"] == [(1, 30.0), (2, 40.0)]
    assert growth["selection/metric"] == [(2, pytest.approx(41.987))]
    assert [step for step, _ in growth["selection/candidates"]] == [2]
    ((_, table),) = growth["selection/candidates/text_summary"]
    lines = table.decode().splitlines()
    assert len(lines) == 64 + 4
    assert lines[4] == "| 1 | (0, 2, 1, 1, 2, 0) | b^I h^T | 1.23 M | 41.23 | 41.99 |"


def test_the_course_of_a_phase_is_not_in_the_charts_of_growth_steps(folder: RunFolder):
    monitor = RunMonitor(folder, config(), io.StringIO())
    monitor.start_phase(2, Phase.TRAIN, SPEC, 40, 120)
    monitor.curve(20, [classified("scenes", 10.0)])
    monitor.evaluation(2, [classified("scenes", 20.0)])
    monitor.close()
    training, growth = (curves(folder.tensorboard / part) for part in ("training", "growth"))
    assert training["zero_shot_in_training/scenes"] == training["zero_shot_in_training/mean"] == [(140, 10.0)]
    assert growth["zero_shot/scenes"] == growth["zero_shot/mean"] == [(2, 20.0)]
    assert not {tag.split("/")[0] for tag in training} & {tag.split("/")[0] for tag in growth}


def test_a_phase_that_is_run_again_leaves_the_selection_before_it(folder: RunFolder):
    monitor = RunMonitor(folder, config(), io.StringIO())
    monitor.start_phase(2, Phase.SELECTION, SPEC, 40, 80)
    monitor.selection(2, candidates())
    monitor.start_phase(2, Phase.TRAIN, SPEC, 40, 120)
    monitor.evaluation(2, [classified("scenes", 10.0)])
    monitor.close()
    monitor = RunMonitor(folder, config(), io.StringIO())
    monitor.start_phase(2, Phase.TRAIN, SPEC, 40, 120)
    monitor.evaluation(2, [classified("scenes", 20.0)])
    monitor.close()
    growth = curves(folder.tensorboard / "growth")
    assert growth["selection/metric"] == [(2, pytest.approx(41.987))]
    assert growth["zero_shot/scenes"][-1] == (2, 20.0)


def test_a_step_that_is_run_again_replaces_its_accuracy(folder: RunFolder):
    for accuracy in (10.0, 20.0):
        monitor = RunMonitor(folder, config(), io.StringIO())
        monitor.start_phase(1, Phase.TRAIN, SPEC, 40, 0)
        monitor.evaluation(1, [classified("scenes", accuracy)])
        monitor.close()
        wait_for_the_next_second()
    assert curves(folder.tensorboard / "growth")["zero_shot/scenes"] == [(1, 20.0)]


def test_the_mean_is_of_the_classification_sets(folder: RunFolder):
    monitor = RunMonitor(folder, config(), io.StringIO())
    monitor.start_phase(1, Phase.TRAIN, SPEC, 40, 0)
    monitor.evaluation(1, [classified("things", 10.0), retrieved("pairs", 50.0), classified("others", 20.0)])
    monitor.close()
    assert curves(folder.tensorboard / "growth")["zero_shot/mean"] == [(1, 15.0)]
