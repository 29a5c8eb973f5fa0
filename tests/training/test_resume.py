"""Going on in the middle of a phase: the same bits, the same curves on other ranks and stages, damage passed over."""

from __future__ import annotations

import errno
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from growclip_ds.checkpoint.checkpoint import Checkpoint, write_checkpoint
from growclip_ds.checkpoint.writing import index_checksum
from growclip_ds.config.config import CheckpointSection
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import Phase
from growclip_ds.run.folder import RunFolder
from growclip_ds.training import resume
from growclip_ds.training.resume import CheckpointKeeper, newest_good
from tests.group import Groups, RankError
from tests.pipeline_runs import TIMES, assert_same_weights, grow_until, write_data
from tests.precisions import needs_fp16

DS_CONFIGS = Path(__file__).parents[2] / "ds_configs"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def curve(run: RunFolder, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run.tensorboard / "training")).Reload()
    return [(event.step, event.value) for event in events.Scalars(f"train/{name}")]


def losses(run: RunFolder) -> list[tuple[int, float]]:
    return curve(run, "loss")


# In the foreground ("false") a run writes as it does when it stops.
@pytest.mark.parametrize(("looks", "background"), [(4, "true"), pytest.param(7, "false", marks=pytest.mark.slow)])
def test_a_run_stopped_again_and_again_ends_with_the_same_bits(
    data: Path, finished_run: RunFolder, group: Groups, tmp_path: Path, looks: int, background: str
) -> None:
    """In every phase; one rank alone is asked. Checkpoints by number come in between."""
    run = RunFolder(tmp_path / "run")
    options = (f"checkpoint.background={background}", "checkpoint.every_iterations=2", "health.spike_factor=9")
    for attempts in itertools.count(1):  # noqa: B007
        done = group(2).run(grow_until, data, run.path, looks, 2, None, options)
        assert done[0] == done[1]
        if done[0]:
            break
    assert attempts > 5
    assert_same_weights(finished_run, run)
    for ours, theirs in zip(finished_run.records(), run.records(), strict=True):
        assert ours.device_seconds == pytest.approx(2 * ours.seconds)
        assert replace(ours, **TIMES) == replace(theirs, **TIMES)
    assert losses(run) == losses(finished_run)  # every iteration once
    assert not list(run.path.glob("step_*/*/checkpoints"))
    assert not list(run.path.rglob("*.partial"))


# Stage 1 in bf16 goes on with the same bits in tests/training/test_engine.py.
@pytest.mark.parametrize("file", [pytest.param("zero1.json", marks=pytest.mark.slow), "zero3_offload.json"])
def test_with_the_deepspeed_files_of_gpus_too(data: Path, group: Groups, tmp_path: Path, file: str) -> None:
    """In bf16, with offload; their stages in fp32 are in tests/training/test_engine.py."""
    shutil.copy(DS_CONFIGS / file, data / "zero_shipped.json")
    runs = [RunFolder(tmp_path / name) for name in ("alone", "stopped")]
    options = ("checkpoint.every_iterations=1", "training.optimizer=adamw", "evaluation.datasets=[]")
    group(2).run(grow_until, data, runs[0].path, 10**6, "_shipped", 1, options)
    assert not any(group(2).run(grow_until, data, runs[1].path, 4, "_shipped", 1, options))
    group(2).run(grow_until, data, runs[1].path, 10**6, "_shipped", 1, options)
    ours, theirs = (Checkpoint(run.weights(1, Phase.TRAIN)) for run in runs)
    assert all(torch.equal(ours.read(name), theirs.read(name)) for name in ours.names)


TWELVE = ("epochs.first=4", "evaluation.datasets=[]")  # iterations of the first growth step


def stop_after_eight(data: Path, group: Groups, run: Path, *more: str) -> RunFolder:
    options = (*TWELVE, "checkpoint.every_iterations=3", *more)
    assert group(2).run(grow_until, data, run, 8, 2, 1, options) == [False, False]
    return RunFolder(run)


@pytest.fixture(scope="module")
def stopped(data: Path, group: Groups, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A first growth step of 12 iterations, stopped after 8; tests that go on with it take a copy."""
    return stop_after_eight(data, group, tmp_path_factory.mktemp("stopped") / "run")


@pytest.fixture(scope="module")
def left_alone(data: Path, group: Groups, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same growth step, not stopped."""
    folder = tmp_path_factory.mktemp("left_alone") / "run"
    group(2).run(grow_until, data, folder, 10**6, 2, 1, TWELVE)
    return RunFolder(folder)


def copy(run: RunFolder, folder: Path) -> RunFolder:
    shutil.copytree(run.path, folder / "run")
    return RunFolder(folder / "run")


def test_so_many_are_kept_and_appear_whole(data: Path, stopped: RunFolder, group: Groups, tmp_path: Path) -> None:
    assert names(stopped.checkpoints(1, Phase.TRAIN)) == ["iteration_000000006", "iteration_000000008"]
    one = stop_after_eight(data, group, tmp_path / "one", "checkpoint.keep_last=1")
    assert names(one.checkpoints(1, Phase.TRAIN)) == ["iteration_000000008"]
    checkpoint = Checkpoint(stopped.checkpoints(1, Phase.TRAIN) / "iteration_000000006")
    checkpoint.verify()
    events = EventAccumulator(str(stopped.tensorboard / "training")).Reload()
    assert [event.step for event in events.Scalars("checkpoint/waited_share")] == [3, 6, 8]
    resume = checkpoint.description["resume"]
    assert resume["iteration"] == 6
    assert set(resume["steps"].values()) == {6}  # as it was then, though it appeared later
    assert {name.partition("/")[0] for name in checkpoint.names} >= {"exp_avg", "exp_avg_sq", "logit_scale"}


DAMAGES = ("cut", "flipped", "index flipped", "index gone", "file gone")


def damage(checkpoint: Path, kind: str) -> None:
    """Damages a checkpoint's index or the last of its other files."""
    file = checkpoint / "weights.json" if "index" in kind else max(checkpoint.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    if kind == "cut":
        file.write_bytes(content[:-100])
    elif "gone" in kind:
        file.unlink()
    else:
        content[content.index(b'"iteration": ') + 13 if "index" in kind else -1] ^= 1
        file.write_bytes(content)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "flipped")) for kind in DAMAGES]
)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    data: Path, stopped: RunFolder, left_alone: RunFolder, group: Groups, tmp_path: Path, kind: str
) -> None:
    run = copy(stopped, tmp_path)
    damage(run.checkpoints(1, Phase.TRAIN) / "iteration_000000008", kind)
    output = group(2).run(grow_and_tell, data, run.path)[0]
    assert "skipping a damaged checkpoint" in output
    assert "iteration_000000008" in output
    assert "resumes after iteration 6 of 12" in output
    ours, theirs = (Checkpoint(folder.weights(1, Phase.TRAIN)) for folder in (run, left_alone))
    assert all(torch.equal(ours.read(name), theirs.read(name)) for name in ours.names)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A phase's checkpoints, after 2 and 4 iterations."""
    monkeypatch.setattr(resume, "SECOND_TRY", 0.0)
    for iteration in (2, 4):
        folder = tmp_path / "checkpoints" / f"iteration_{iteration:09d}"
        write_checkpoint(folder, [("a", torch.ones(3))], {"a": (3,)}, lambda _: 0, {"resume": {"iteration": iteration}})
    return tmp_path / "checkpoints"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def cut(checkpoint: Path) -> None:
    (file,) = checkpoint.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])


def never(note: str) -> None:
    raise AssertionError(note)


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_of_any_kind_is_passed_over(kept: Path, kind: str) -> None:
    damage(kept / "iteration_000000004", kind)
    notes: list[str] = []
    found = newest_good(kept, notes.append)
    assert found is not None
    assert found.folder.name == "iteration_000000002"
    (note,) = notes
    assert note.startswith("skipping a damaged checkpoint: ")
    assert "iteration_000000004" in note
    assert names(kept) == ["damaged_iteration_000000004", "iteration_000000002"]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_failure_to_read_stops_the_run_and_touches_nothing(kept: Path, suffix: str, times: int) -> None:
    """What fails once is read when it is tried again."""
    failures, original = iter(range(times)), Path.open

    def fail(path: Path, *args: Any, **more: Any) -> Any:
        if path.suffix == f".{suffix}" and next(failures, None) is not None:
            raise OSError(errno.ESTALE, "Stale file handle")
        return original(path, *args, **more)

    before = names(kept)
    with mock.patch.object(Path, "open", fail):
        if times == 1:
            found = newest_good(kept, never)
            assert found is not None
            assert found.folder.name == "iteration_000000004"
        else:
            with pytest.raises(InputError, match="cannot be read: Stale file handle"):
                newest_good(kept, never)
    assert names(kept) == before


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(kept: Path) -> None:
    failing = mock.Mock(side_effect=OSError(errno.EIO, "Input/output error"))
    with (
        mock.patch("os.listdir", failing),
        mock.patch("os.scandir", failing),
        pytest.raises(InputError, match="Input/output error"),
    ):
        newest_good(kept, never)
    assert newest_good(kept / "none", never) is None


def test_checkpoints_of_another_version_stop_the_run_and_stay(kept: Path) -> None:
    for file in kept.glob("*/weights.json"):
        index = json.loads(file.read_text()) | {"version": 2}
        file.write_text(json.dumps(index | {"crc32": index_checksum(index)}))
    before = names(kept)
    with pytest.raises(InputError, match=r"iteration_000000004.* version 2; this program reads .* version 1"):
        newest_good(kept, never)
    assert names(kept) == before


def test_a_phase_of_which_all_checkpoints_are_damaged_does_not_begin_again_unasked(kept: Path) -> None:
    for checkpoint in kept.iterdir():
        cut(checkpoint)
    notes: list[str] = []
    for _ in range(2):  # neither at once nor started again
        with pytest.raises(InputError, match=r"all checkpoints are damaged .*remove this folder or move it out of"):
            newest_good(kept, notes.append)
    assert names(kept) == ["damaged_iteration_000000002", "damaged_iteration_000000004"]
    assert len(notes) == 2
    shutil.rmtree(kept)
    assert newest_good(kept, notes.append) is None


@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_damaged_checkpoints_are_kept_until_there_are_enough_good_ones(kept: Path, keep_last: int) -> None:
    cut(kept / "iteration_000000004")
    assert newest_good(kept, lambda _: None) is not None
    engine = SimpleNamespace(
        optimizer=SimpleNamespace(steps={}), loss_scale=None, masters=lambda owner: [], moments=lambda kind, owner: []
    )
    section = CheckpointSection(keep_last=keep_last, background=False)
    keeper: Any = CheckpointKeeper(kept, section, engine, {}, lambda: {"resume": {}}, mock.Mock())
    keeper.write(6)
    assert ("damaged_iteration_000000004" in names(kept)) == (keep_last == 3)
    keeper.write(8)
    assert names(kept) == [f"iteration_{number:09d}" for number in (2, 6, 8)[-keep_last:]]


def grow_and_tell(data: Path, run: Path) -> str:
    import contextlib
    import io

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        grow_until(data, run, 10**6, 2, 1, TWELVE)
    return output.getvalue()


EIGHTEEN = ("epochs.first=6", "training.warmup_iterations=0", "evaluation.datasets=[]")


@pytest.fixture(scope="module")
def stopped_and_continued(
    data: Path, group: Groups, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, RunFolder]:
    """A first growth step of 18 iterations, stopped after 7, and a copy that went on with the same ranks and stage."""
    stopped = RunFolder(tmp_path_factory.mktemp("stopped") / "run")
    assert not any(group(2).run(grow_until, data, stopped.path, 7, 2, 1, EIGHTEEN))
    continued = copy(stopped, tmp_path_factory.mktemp("continued"))
    assert all(group(2).run(grow_until, data, continued.path, 10**6, 2, 1, EIGHTEEN))
    return stopped, continued


@pytest.mark.parametrize(("ranks", "stage"), [(1, 2), (2, 1), (4, 3)])
def test_other_ranks_and_stages_go_on_with_the_curve(
    data: Path,
    stopped_and_continued: tuple[RunFolder, RunFolder],
    group: Groups,
    tmp_path: Path,
    ranks: int,
    stage: int,
) -> None:
    stopped, continued = stopped_and_continued
    moved = copy(stopped, tmp_path)
    group(ranks).run(grow_until, data, moved.path, 10**6, stage, 1, EIGHTEEN)
    ours, theirs = losses(continued), losses(moved)
    assert [iteration for iteration, _ in theirs] == list(range(1, 19))
    assert ours[:7] == theirs[:7]
    for (_, expected), (_, found) in zip(ours[7:17], theirs[7:17], strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    record = moved.record(1, Phase.TRAIN)
    mean_ranks = record.device_seconds / record.seconds  # those of the first start count, too
    assert ranks == 2 == pytest.approx(mean_ranks) or min(2, ranks) < mean_ranks < max(2, ranks)


def test_another_stage_goes_on_within_selection(
    finished_data: Path, finished_run: RunFolder, group: Groups, tmp_path: Path
) -> None:
    """Where sampled subnets have left each tensor's moments after a number of updates of their own."""
    ended = []
    for name, parts in {"alone": [(5, 2)], "moved": [(3, 2), (2, 3)]}.items():  # iterations and stages
        run = copy(finished_run, tmp_path / name)
        shutil.rmtree(run.phase(2, Phase.TRAIN))
        shutil.rmtree(run.phase(2, Phase.SELECTION))
        for iterations, stage in parts:
            assert not any(group(2).run(grow_until, finished_data, run.path, iterations, stage))
        ended.append(Checkpoint(run.checkpoints(2, Phase.SELECTION) / "iteration_000000005"))
    alone, moved = ended
    steps = alone.description["resume"]["steps"]
    assert moved.description["resume"]["steps"] == steps
    assert len(set(steps.values())) > 1
    for name in alone.names:
        if not name.endswith("qkv.bias"):  # keys' biases have no gradient but rounding errors
            expected = alone.read(name)
            assert (moved.read(name) - expected).norm() <= 1e-3 * expected.norm(), name


def test_what_has_changed_under_a_run_is_noticed(data: Path, stopped: RunFolder, group: Groups, tmp_path: Path) -> None:
    run = copy(stopped, tmp_path).path
    with pytest.raises(RankError, match=r"(?s)another configuration.*training\.learning_rate"):
        group(2).run(grow_until, data, run, 9, 2, 1, (*TWELVE, "training.learning_rate=0.1"))
    clipped = json.loads((data / "zero2.json").read_text()) | {"gradient_clipping": 0.5}
    (data / "zero9.json").write_text(json.dumps(clipped))
    (output,) = {text for text in group(2).run(grow_on_other_file, data, run) if text}
    assert "the DeepSpeed file has changed; the run continues with it: gradient_clipping: 0.0 before, 0.5 now" in output


def grow_on_other_file(data: Path, run: Path) -> str:
    import contextlib
    import io

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        grow_until(data, run, 1, 9, 1, TWELVE)
    return output.getvalue()


@needs_fp16
def test_the_loss_scale_of_fp16_goes_on(data: Path, group: Groups, tmp_path: Path) -> None:
    """Stopped while it is still being looked for: the search goes on where it was, and stops no run."""
    fp16 = {"enabled": True, "initial_scale_power": 20, "loss_scale_window": 3, "hysteresis": 2}
    file = {"gradient_clipping": 0.0, "zero_optimization": {"stage": 2}, "fp16": fp16}
    (data / "zero16.json").write_text(json.dumps(file))
    options = (*TWELVE, "health.max_bad_iterations=1")
    runs = [RunFolder(tmp_path / name) for name in ("alone", "stopped")]
    group(2).run(grow_until, data, runs[0].path, 10**6, 16, 1, options)
    assert not any(group(2).run(grow_until, data, runs[1].path, 3, 16, 1, options))
    (checkpoint,) = runs[1].checkpoints(1, Phase.TRAIN).iterdir()
    assert Checkpoint(checkpoint).description["resume"]["loss_scale"]["cur_iter"] == 3
    group(2).run(grow_until, data, runs[1].path, 10**6, 16, 1, options)
    ours, theirs = (Checkpoint(run.weights(1, Phase.TRAIN)) for run in runs)
    assert all(torch.equal(ours.read(name), theirs.read(name)) for name in ours.names)
    skipped = [run.record(1, Phase.TRAIN).training.skipped_iterations for run in runs]
    assert 3 < skipped[0] == skipped[1] < 12, skipped
    assert sum(skips for _, skips in curve(runs[0], "skipped")) == skipped[0]
    scales = [scale for _, scale in curve(runs[0], "loss_scale")]
    assert len(scales) == 12
    assert 1 < min(scales) < 2**20 == max(scales)
