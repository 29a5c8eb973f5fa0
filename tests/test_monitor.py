from __future__ import annotations

import io
import math
import os
import random
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from growclip_ds import Architecture, GrowthSpace
from growclip_ds.architecture import ModelSizes
from growclip_ds.config import Config
from growclip_ds.growth_space import Candidate
from growclip_ds.model_plan import GrowCLIPPlan
from growclip_ds.monitor import (
    Monitor,
    RunMonitor,
    StepSummary,
    open_monitor,
    print_summary,
    read_summaries,
)
from growclip_ds.monitor.figures import architecture_figure, selection_figure
from growclip_ds.monitor.progress import Output, PhaseProgress, plan_phases
from growclip_ds.monitor.starvation import StarvationWatch
from growclip_ds.monitor.words import duration
from growclip_ds.phases import Phase
from growclip_ds.run_folder import RunFolder, open_run

SIZES = ModelSizes(vocab_size=1000, context_length=77, image_size=64, embed_dim=64)
BASE = Architecture(0, 1, 1, 1, 1, 0)
PLAN = GrowCLIPPlan(BASE, SIZES, 999)
SETS = ("scenes_objects", "scenes_retrieval")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Progress:
    iteration: int
    iterations: int
    loss: float = 3.2142
    learning_rate: float = 0.01
    logit_scale: float = 14.3
    gradient_norm: float = 1.5
    skipped: int = 0
    samples_per_second: float = 512.3
    data_wait_share: float = 0.02
    broken_samples: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    dataset: str
    accuracy: float


def config(steps: int = 2) -> Config:
    subsets = [{"name": f"s{i}", "shards": f"shards/{i}"} for i in range(steps)]
    return Config.model_validate(
        {
            "model": {"base": dict(BASE.items()), "image_size": 64, "embed_dim": 64},
            "growth": {"conv_step": 1, "block_step": 1, "head_step": 1},
            "data": {"subsets": subsets, "tokenizer": {"vocab_size": 1000}},
            "selection": {"dataset": "eval/scenes_selection"},
        }
    )


def candidates(base: Architecture = BASE) -> list[Candidate]:
    """All 64 in no order, the one that grows in image blocks and text heads best."""
    chance = random.Random(0)
    rows = []
    for architecture in GrowthSpace(base, 1, 1, 1):
        parameters, accuracy = SIZES.parameters_of(architecture), 30 + 5 * chance.random()
        rows.append(Candidate(architecture, parameters, accuracy, accuracy + 0.4))
    best = Candidate(Architecture(0, 2, 1, 1, 2, 0), 1_234_567, 41.234, 41.987)
    rows = [row for row in rows if row.architecture != best.architecture]
    rows.insert(20, best)
    return rows


def run_phase(
    monitor: Monitor, folder: RunFolder, step: int, phase: Phase, architecture: Architecture, stop: int = 40
) -> None:
    """A phase of 40 iterations, reported every 10, as the pipeline tells it; interrupted after `stop`."""
    first = folder.iterations_before(step, phase)
    monitor.start_phase(step, phase, GrowCLIPPlan(architecture, SIZES, 999), 40, first)
    for done in range(10, stop + 1, 10):
        monitor.progress(Progress(done, 40, loss=5 - (first + done) / 100))
    if stop < 40:
        return
    record: dict[str, Any] = {"samples": 3000 * step, "parameters": 10**6, "iterations": 40, "seconds": 60.0}
    if phase is Phase.SELECTION:
        rows = candidates()
        monitor.selection(step, rows)
        ranked = sorted(rows, key=lambda row: -row.metric)
        record["candidates"] = [vars(row) | {"architecture": dict(row.architecture.items())} for row in ranked]
        record["selection_set"] = "scenes_selection"
    if phase is Phase.TRAIN:
        monitor.evaluation(step, [Result(name, 20.0 + 10 * step) for name in SETS])
        recall = {"R@1": 20.0 + 10 * step}
        record["evaluation"] = [
            {"dataset": SETS[0], "type": "classification", "top1": recall["R@1"]},
            {"dataset": SETS[1], "type": "retrieval", "image_to_text": recall, "text_to_image": recall},
        ]
    folder.finish(step, phase, record)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return open_run(tmp_path / "run", config())


def wait_for_the_next_second() -> None:
    """Event files are read in the order of their names, which tell the second."""
    time.sleep(1.01 - time.time() % 1)


@pytest.fixture(scope="module")
def grown_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    """A run that was interrupted in its selection phase and went on; with what the second part printed."""
    folder = open_run(tmp_path_factory.mktemp("grown") / "run", config())
    supernet = GrowthSpace(BASE, 1, 1, 1).supernet
    first = RunMonitor(folder, config(), [3000, 6000], io.StringIO())
    run_phase(first, folder, 1, Phase.TRAIN, BASE)
    run_phase(first, folder, 2, Phase.FINETUNE, supernet)
    run_phase(first, folder, 2, Phase.SELECTION, supernet, stop=20)
    first.curves.flush()  # the process is killed

    wait_for_the_next_second()
    printed = io.StringIO()
    second = RunMonitor(folder, config(), [3000, 6000], printed)
    run_phase(second, folder, 2, Phase.SELECTION, supernet)
    run_phase(second, folder, 2, Phase.TRAIN, folder.selected_architecture(2))
    second.finish()
    second.close()
    return folder, printed.getvalue()


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


def test_a_phase_that_is_run_again_leaves_the_selection_before_it(folder: RunFolder):
    monitor = RunMonitor(folder, config(), [3000, 6000], io.StringIO())
    monitor.start_phase(2, Phase.SELECTION, PLAN, 40, 80)
    monitor.selection(2, candidates())
    monitor.start_phase(2, Phase.TRAIN, PLAN, 40, 120)
    monitor.evaluation(2, [Result("scenes", 10.0)])
    monitor.close()
    monitor = RunMonitor(folder, config(), [3000, 6000], io.StringIO())
    monitor.start_phase(2, Phase.TRAIN, PLAN, 40, 120)
    monitor.evaluation(2, [Result("scenes", 20.0)])
    monitor.close()
    growth = curves(folder.tensorboard / "growth")
    assert growth["selection/metric"] == [(2, pytest.approx(41.987))]
    assert growth["zero_shot/scenes"][-1] == (2, 20.0)


def test_a_step_that_is_run_again_replaces_its_accuracy(folder: RunFolder):
    for accuracy in (10.0, 20.0):
        monitor = RunMonitor(folder, config(), [3000, 6000], io.StringIO())
        monitor.start_phase(1, Phase.TRAIN, PLAN, 40, 0)
        monitor.evaluation(1, [Result("scenes", accuracy)])
        monitor.close()
        wait_for_the_next_second()
    assert curves(folder.tensorboard / "growth")["zero_shot/scenes"] == [(1, 20.0)]


def test_what_a_run_prints_into_a_pipe(grown_run):
    folder, printed = grown_run
    lines = printed.splitlines()
    assert "\x1b" not in printed
    assert "\r" not in printed
    assert max(len(line) for line in lines if "tensorboard" not in line) <= 100
    text = "\n".join(lines)
    assert re.search(r"step 2/2 selection: 40 iterations in 0:\d\d, loss 3\.800, 512 samples/s", text)
    assert "step 2/2 selected (0, 2, 1, 1, 2, 0) of 64: 1.23 M parameters, accuracy 41.2 %, metric 41.99" in text
    assert "step 2/2 zero-shot: scenes_objects 40.0 %, scenes_retrieval 40.0 %" in text
    assert f"tensorboard --logdir {folder.path}" in printed


def test_summaries_are_read_from_the_folder(grown_run):
    folder, _ = grown_run
    first, second = read_summaries(folder)
    assert (first.step, first.architecture, first.samples, first.seconds) == (1, BASE, 3000, 60.0)
    assert (first.before, first.after, first.candidates) == ({}, dict.fromkeys(SETS, 30.0), [])
    assert (second.architecture, second.seconds) == (Architecture(0, 2, 1, 1, 2, 0), 180.0)
    assert (second.before, second.after) == (first.after, dict.fromkeys(SETS, 40.0))
    assert second.selection_set == "scenes_selection"
    assert len(second.candidates) == 64
    assert second.candidates[0] == Candidate(second.architecture, 1_234_567, 41.234, 41.987)


def summary(step: int, sets: list[str]) -> StepSummary:
    return StepSummary(
        step=step,
        samples=3_000_000 * step,
        architecture=Architecture(10, 20, 10, 10, 10, 10),
        parameters=188_520_000,
        seconds=3_723.0 * step,
        before={} if step == 1 else dict.fromkeys(sets, 20.0),
        after=dict.fromkeys(sets, 30.06) | dict.fromkeys(sets[7:], 0.0),
        averaged=sets[:7],
        candidates=() if step == 1 else candidates(),
        selection_set=None if step == 1 else "scenes_selection",
    )


@pytest.mark.parametrize(
    "sets", [["scenes_objects", "a_set_with_quite_a_long_name_of_its_own"], [f"set_{i}" for i in range(9)]]
)
def test_the_summary_fits_100_columns(sets: list[str], tmp_path: Path):
    stream = io.StringIO()
    print_summary([summary(step, sets) for step in (1, 2, 3, 4)], tmp_path, stream)
    lines = stream.getvalue().splitlines()
    assert max(len(line) for line in lines if "tensorboard" not in line) <= 100
    text = " ".join(stream.getvalue().split())
    assert "4 12,000,000 (10, 20, 10, 10, 10, 10) 188.52 M 20.0 → 30.1" in text
    assert "4:08:12" in text
    assert "– → 30.1" in text
    assert "2 1 of 64 (0, 2, 1, 1, 2, 0) b^I h^T 1.23 M 41.23 41.99" in text
    if len(sets) > 2:
        assert "mean of 7 sets" in text  # those of classification
        assert "set_8 0.0 0.0 0.0 0.0" in text
        assert "mean of 7 30.1 30.1 30.1 30.1" in text


def test_a_summary_in_ascii(tmp_path: Path):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_summary([summary(step, ["scenes"]) for step in (1, 2)], tmp_path, stream)
    assert b"20.0 ? 30.1" in stream.buffer.getvalue()


def test_a_summary_without_evaluation_or_steps(tmp_path: Path):
    stream = io.StringIO()
    print_summary([summary(1, [])], tmp_path, stream)
    print_summary([], tmp_path, stream)
    assert "188.52 M   1:02:03" in stream.getvalue()


def progress_lines(stream: io.StringIO, clock: Clock, iterations: int, seconds: float, **figures: Any) -> str:
    progress = PhaseProgress(
        Output(stream, clock), 2, 3, Phase.SELECTION, {(2, Phase.SELECTION): iterations, (2, Phase.TRAIN): 300}
    )
    for done in range(10, iterations + 1, 10):
        clock.now += seconds * 10
        progress.report(Progress(done, iterations, **figures))
    return stream.getvalue()


def test_plain_lines_come_now_and_then():
    clock = Clock()
    lines = progress_lines(io.StringIO(), clock, iterations=1000, seconds=0.1).splitlines()
    assert len(lines) == 1 + 98 // 5 + 1
    assert lines[1] == ("step 2/3 selection  60/1,000  loss 3.214  512 samples/s  1:34 left, run about 2:04")
    assert lines[-1] == "step 2/3 selection: 1,000 iterations in 1:40, loss 3.214, 512 samples/s"


def test_a_terminal_has_one_live_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "100")
    shown = progress_lines(Terminal(), Clock(), iterations=100, seconds=0.1, data_wait_share=0.34)
    assert shown.count("\n") == 1  # at the end of the phase
    updates = shown.split("\r")[1:]
    assert len(updates) == 10
    assert updates[4].startswith("step 2/3 selection  [########........] 50/100  loss 3.214  512 samples/s  0:05 left")
    assert all(len(update.removesuffix("\x1b[K")) <= 99 for update in updates[:-1])
    assert updates[-1] == "step 2/3 selection: 100 iterations in 0:10, loss 3.214, 512 samples/s\x1b[K\n"
    monkeypatch.setenv("COLUMNS", "40")
    narrow = progress_lines(Terminal(), Clock(), iterations=100, seconds=0.1).split("\r")[1:-1]
    assert {len(update.removesuffix("\x1b[K")) for update in narrow} == {39}


def test_waiting_for_data_shows_where_it_matters():
    slow = progress_lines(io.StringIO(), Clock(), iterations=20, seconds=1.0, data_wait_share=0.34)
    assert slow.splitlines()[0].endswith("waits for data 34%")
    fast = progress_lines(io.StringIO(), Clock(), iterations=20, seconds=1.0, data_wait_share=0.05)
    assert "waits" not in fast


def warned_at(shares: list[float], every: int = 10) -> list[int]:
    """The reports, counted from 0, after which a phase warns that it waits for data."""
    watch = StarvationWatch(workers=4)
    progress = [Progress(every * (place + 1), 10**6, data_wait_share=share) for place, share in enumerate(shares)]
    return [place for place, report in enumerate(progress) if watch.warning(report)]


def test_waiting_for_data_is_warned_of_when_it_goes_on():
    assert warned_at([0.9, 0.02, 0.02, 0.02]) == []  # the start of the workers
    assert warned_at([0.9, 0.9, 0.9]) == []
    assert warned_at([0.9, 0.3, 0.4, 0.2, 0.3, 0.3]) == [3]
    assert warned_at([0.9, 0.3, 0.09, 0.3, 0.3, 0.09, 0.2, 0.2, 0.2]) == [8]


def test_the_warning_comes_again_after_a_thousand_iterations():
    assert warned_at([0.5] * 250) == [3, 103, 203]
    assert warned_at([0.5] * 6, every=1000) == [3, 4, 5]


def test_the_warning_names_the_remedy(folder: RunFolder):
    stream = io.StringIO()
    monitor = RunMonitor(folder, config(), [3000], stream)
    monitor.start_phase(1, Phase.TRAIN, PLAN, 100, 0)
    for done in range(10, 50, 10):
        monitor.progress(Progress(done, 100, data_wait_share=0.345))
    monitor.close()
    (warning,) = [line for line in stream.getvalue().splitlines() if line.startswith("Warning")]
    assert warning.startswith("Warning: 34% of the time goes by waiting for data: raise data.workers (4 a rank; ")
    assert f"{os.cpu_count()} processors" in warning
    assert "local disk" in warning
    without = StarvationWatch(workers=0)
    texts = [without.warning(Progress(done, 100, data_wait_share=0.3)) for done in range(10, 50, 10)]
    assert "raise data.workers (0, which loads between iterations; " in texts[-1]


def test_updates_left_out_are_told():
    shown = progress_lines(io.StringIO(), Clock(), iterations=20, seconds=1.0, skipped=2)
    assert "step 2/3 selection: no update in 2 of the iterations up to 10: gradients were not finite" in shown


def test_the_first_report_does_not_count_for_long():
    clock, stream = Clock(), io.StringIO()
    progress = PhaseProgress(Output(stream, clock), 1, 1, Phase.TRAIN, {})
    for done, seconds in ((10, 100), (20, 10), (30, 10)):
        clock.now += seconds
        progress.report(Progress(done, 100))
    assert [line.split("  ")[-1] for line in stream.getvalue().splitlines()] == ["15:00 left", "1:20 left", "1:10 left"]


def test_the_plan_is_that_of_the_phases():
    plan = plan_phases(config(), [3000, 6000])
    assert list(plan) == [(1, Phase.TRAIN), (2, Phase.FINETUNE), (2, Phase.SELECTION), (2, Phase.TRAIN)]
    assert list(plan.values()) == [math.ceil(n / 1536) for n in (30 * 3000, 2 * 6000, 2 * 6000, 26 * 6000)]


def test_choosing_by_what_is_reported_is_warned_of(folder: RunFolder):
    stream = io.StringIO()
    evaluation = {"datasets": ["eval/scenes_selection"]}
    reported = config().model_copy(update={"evaluation": type(config().evaluation).model_validate(evaluation)})
    RunMonitor(folder, reported, [], stream)
    assert stream.getvalue().startswith(
        "Warning: selection.dataset, eval/scenes_selection, is one of evaluation.datasets"
    )


def monitor_of_a_rank(path: str) -> tuple[str, list[str]]:
    folder = open_run(path, config())
    monitor = open_monitor(folder, config(), [3000, 6000], io.StringIO())
    run_phase(monitor, folder, 1, Phase.TRAIN, BASE)
    monitor.finish()
    monitor.close()
    return type(monitor).__name__, sorted(os.listdir(folder.tensorboard))  # noqa: PTH208


def test_only_the_first_rank_tells(group, tmp_path: Path):
    first, second = group(2).run(monitor_of_a_rank, str(tmp_path / "run"))
    assert (first[0], second[0]) == ("RunMonitor", "Monitor")
    assert first[1] == ["growth", "training"]
    for part in first[1]:
        assert len(list((tmp_path / "run" / "tensorboard" / part).iterdir())) == 1


def test_architecture_figure():
    def bars(figure: Any) -> list[float]:
        return [patch.get_width() for patch in figure.axes[0].patches if patch.get_width()]

    new, old = Architecture(1, 3, 2, 2, 3, 2), Architecture(0, 2, 2, 2, 1, 0)
    # Stem, patches, tokens and blocks of the new; each has its old part inside, but what is new altogether.
    layers = 2 + 1 + 3 + 1 + 2 + 2
    assert len(bars(architecture_figure(new))) == 2 * layers
    grown = bars(architecture_figure(new, old))
    assert len(grown) == 2 * layers - (1 + 1 + 2)
    assert grown.count(192) == 1 + 2 + 2
    assert grown.count(64) == 2 + 1 + 3  # convolutions, and the old text width inside the new
    assert architecture_figure(new, old).axes[0].get_title() == f"{new}, grown from {old}"


def test_selection_figure():
    axes = selection_figure(candidates()).axes[0]
    points, base, best = (collection.get_offsets() for collection in axes.collections)
    assert len(points) == 64
    assert base[0].tolist() == pytest.approx([SIZES.parameters_of(BASE) / 1e6, candidates()[0].accuracy])
    assert best[0].tolist() == pytest.approx([1.234567, 41.234])
    assert axes.get_title() == "64 candidates; growing b^I h^T is best"


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (59.6, "1:00"), (723, "12:03"), (3723, "1:02:03")])
def test_durations(seconds: float, shown: str):
    assert duration(seconds) == shown
