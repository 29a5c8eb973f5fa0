"""When a growth step is due: by the growth of the data, by the curve of the loss; and one watch at a time."""

from __future__ import annotations

import errno
import math
import os
import shutil
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from growclip_ds.cli import watch as cli_watch
from growclip_ds.cli.program import main
from growclip_ds.config.config import load_config
from growclip_ds.data.data_list import add_subset, extend_subset
from growclip_ds.data.subsets import Subset, write_subsets
from growclip_ds.errors import InputError
from growclip_ds.run import submissions
from growclip_ds.run.folder import RunFolder
from growclip_ds.run.submissions import Submissions
from growclip_ds.run.watch import Decision, GrowthRule, decide, fall_of_loss, training_losses
from tests.data.corpus import write_shards
from tests.pipeline_runs import phases, write_data
from tests.records import phase_record

FALLING = [4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5]
FLAT = [4.0, 3.0, 2.0, 1.5, 1.01, 1.0, 1.0, 1.0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subsets of 48 pairs: steps 2 and 3 have 2 and 1.5 times the samples of the step before."""
    return write_data(tmp_path_factory.mktemp("data"), steps=3)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that has finished its first growth step, of which eight losses are recorded."""
    folder = RunFolder(tmp_path / "a run")
    finish(folder, 1, first=0, losses=FALLING)
    return folder


def finish(folder: RunFolder, step: int, first: int, losses: list[float]) -> None:
    for phase in phases(step):
        folder.finish(phase_record(step, phase, first_iteration=first, iterations=10 * len(losses)))
    with SummaryWriter(folder.tensorboard / "training") as writer:
        for place, loss in enumerate(losses, start=1):
            writer.add_scalar("train/loss", loss, first + 10 * place)


def look(data: Path, run: RunFolder, growth: float, plateau: float | None = None, *overrides: str) -> Decision:
    return decide(load_config(data / "config.yaml", overrides), run, GrowthRule(growth, plateau))


def test_a_step_is_due_when_its_data_has_grown_enough(data: Path, run: RunFolder) -> None:
    due = look(data, run, 2.0)
    assert due == Decision(2, True, "96 samples instead of 48, 2.00 times as many")
    remedy = "put it into subset 's2' (growclip data add --extend), as 's3' is for step 3"
    assert look(data, run, 2.01) == Decision(2, False, f"waits for more data: {due.reason}, not 2.01 times; {remedy}")
    # 1.1 * 100,000 is above 110,000 in floating point.
    assert look(data, run, 1.1, None, "data.subsets.0.samples=100000", "data.subsets.1.samples=10000").is_due


def test_data_that_arrives_week_by_week_makes_a_step_due(data: Path, run: RunFolder, tmp_path: Path) -> None:
    """Three times 20 %. A subset behind the step's own changes nothing."""
    file = tmp_path / "list.yaml"
    for number in range(5):
        write_shards(tmp_path / str(number), 50 if number == 0 else 10, prefix=f"{number}-")
    add_subset(file, "first", [str(tmp_path / "0")])
    write_subsets(add_subset(file, "second", [str(tmp_path / "1")])[:1], run.data_file)

    def now() -> Decision:
        return look(data, run, 1.5, None, f"data.subsets={file}")

    assert now() == Decision(
        2,
        False,
        "waits for more data: 60 samples instead of 50, 1.20 times as many, not 1.5 times; "
        "put it into subset 'second' (growclip data add --extend)",
    )
    add_subset(file, "third", [str(tmp_path / "4")])
    extend_subset(file, "second", [str(tmp_path / "2")])
    assert "1.40 times as many" in now().reason
    assert now().reason.endswith("'second' (growclip data add --extend), as 'third' is for step 3")
    extended = extend_subset(file, "second", [str(tmp_path / "3")])
    assert now() == Decision(2, True, "80 samples instead of 50, 1.60 times as many")
    # A job that has begun and failed has fixed the subset.
    write_subsets(extended[:2], run.data_file)
    stuck = look(data, run, 1.7, None, f"data.subsets={file}")
    assert stuck.reason.endswith(
        "subset 'second' is in use and cannot be extended: lower --growth, or run slurm/grow_run.sh"
    )


def test_a_step_is_due_when_the_loss_falls_no_more(data: Path, run: RunFolder) -> None:
    assert not look(data, run, 3.0, 0.1).is_due
    finish(run, 2, first=80, losses=FLAT)
    due = look(data, run, 3.0, 0.01)
    assert (due.step, due.is_due) == (3, True)
    assert due.reason == "the loss fell by 0.5% at the end of step 2, no more than 1.0%; " + (
        "144 samples instead of 96, 1.50 times as many"
    )
    assert not look(data, run, 3.0, 0.001).is_due
    assert not look(data, run, 3.0).is_due


def test_without_curves_there_is_no_plateau(data: Path, run: RunFolder) -> None:
    """Of a model that came with model.start, or left out of a copy of the run."""
    shutil.rmtree(run.tensorboard)
    assert "the loss has too few points to judge" in look(data, run, 30.0, 0.1).reason


def test_a_new_run_begins_after_the_steps_of_its_model(data: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "growclip"}')  # of one growth step
    due = look(data, RunFolder(tmp_path / "run"), 2.1, 0.1, f"model.start={tmp_path}")
    assert due.step == 2
    assert due.reason.startswith("waits for more data: 96 samples instead of 48")


def test_only_data_that_is_not_counted_yet_is_streamed_and_that_once(data: Path, run: RunFolder) -> None:
    said = run.path / "streamed"
    tars = [next((data / f"scenes/train/subset_{step}").glob("*.tar")) for step in (1, 2)]
    addresses = [f"pipe:echo {step} >> '{said}'; cat {tar}" for step, tar in enumerate(tars, start=1)]
    overrides = [f"data.subsets.{place}.shards={address}" for place, address in enumerate(addresses)]
    write_subsets([Subset("s1", addresses[0], 48, (48,))], run.data_file)
    for _ in range(3):
        assert look(data, run, 2.0, None, *overrides).reason == "96 samples instead of 48, 2.00 times as many"
    assert said.read_text() == "2\n"
    write_subsets([Subset("s1", addresses[0], 60, (60,))], run.data_file)
    assert look(data, run, 2.0, None, *overrides).reason.startswith("waits for more data: 108 samples instead of 60")


def test_the_curve_is_that_of_the_steps_last_phase(run: RunFolder) -> None:
    finish(run, 2, first=80, losses=FLAT)
    assert training_losses(run, 1) == pytest.approx(FALLING)
    assert training_losses(run, 2) == pytest.approx(FLAT)
    assert fall_of_loss(FALLING) == pytest.approx(1 - 0.75 / 1.75)
    assert fall_of_loss(FALLING[:7]) is None


def test_losses_that_are_not_finite_are_left_out() -> None:
    """Those of iterations without an update."""
    assert fall_of_loss([math.nan, *FALLING[:6], math.inf, *FALLING[6:]]) == fall_of_loss(FALLING)
    assert fall_of_loss([*FALLING[:7], math.nan]) is None


def test_without_data_or_steps_to_run_nothing_is_due(data: Path, run: RunFolder, tmp_path: Path) -> None:
    assert look(data, RunFolder(tmp_path / "new"), 2.0) == Decision(1, True, "its data is there")
    for step in (2, 3):
        finish(run, step, first=80 * (step - 1), losses=FLAT)
    assert look(data, run, 1.0, 1.0) == Decision(4, False, "waits for data: the list has 3 subsets")
    finished = look(data, run, 1.0, 1.0, "growth.steps=3")
    assert finished == Decision(None, False, "all 3 growth steps are finished (growth.steps)")


def test_one_watch_at_a_time(run: RunFolder, tmp_path: Path) -> None:
    watch = Submissions(run.path)
    with watch.alone(), pytest.raises(InputError, match="is being watched already"), watch.alone():
        pass
    with watch.alone():
        pass
    with pytest.raises(InputError, match="cannot be written"), Submissions(Path("/sys/growclip")).alone():
        pass


def test_a_disk_without_locks(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(submissions.fcntl, "flock", flock)
    message = r"watch.lock cannot be locked \(Function not implemented\): mount the file system with locks"
    with pytest.raises(InputError, match=message), Submissions(run.path).alone():
        pass


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for squeue, which does not answer; returns the script, for others to be put there."""
    script = tmp_path / "bin/squeue"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return script


@pytest.fixture
def submit(tmp_path: Path, squeue: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for slurm/grow_run.sh; returns the file in which it lists its arguments."""
    script = tmp_path / "grow run.sh"
    script.write_text(f'#!/bin/sh\necho "$*" >> "{tmp_path}/submitted"\necho "growth step 2: job 17"\n')
    script.chmod(0o755)
    monkeypatch.setattr(cli_watch, "SUBMIT", str(script))
    return tmp_path / "submitted"


def test_a_step_is_submitted_once(data: Path, run: RunFolder, submit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["watch", "--config", str(data / "config.yaml"), "--output-dir", str(run.path), "--growth", "2"]
    extra = ["--", "DEVICE=cpu", "data.workers=0", "--time=10"]
    assert main([*command, "--dry-run", *extra]) == 0
    said = capsys.readouterr().out
    assert "growth step 2 is due: 96 samples" in said
    assert f"would run: '{submit.parent}/grow run.sh' ONE_AT_A_TIME=1 " in said  # as a shell takes it
    assert not submit.exists()
    for _ in range(2):
        assert main([*command, "--once", *extra]) == 0
    arguments = f"ONE_AT_A_TIME=1 CONFIG={data}/config.yaml RUN_DIR={run.path} DEVICE=cpu data.workers=0 --time=10\n"
    assert submit.read_text() == arguments
    assert capsys.readouterr().out == (
        "growth step 2: job 17\ngrowth step 2 is submitted and not finished: growth step 2: job 17\n"
    )


def test_a_job_that_ended_is_told(
    data: Path, run: RunFolder, squeue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["watch", "--config", str(data / "config.yaml"), "--output-dir", str(run.path), "--growth", "2", "--once"]
    Submissions(run.path).folder.mkdir()
    Submissions(run.path).add(2, "growth step 2: job 17")
    waiting = "growth step 2 is submitted and not finished: growth step 2: job 17\n"
    assert (main(command), capsys.readouterr().out) == (0, waiting)  # Slurm does not answer
    squeue.write_text(f'#!/bin/sh\necho "$*" > "{tmp_path}/asked"\necho 17\n')
    assert (main(command), capsys.readouterr().out) == (0, waiting)
    assert " --me --name=a_run-" in (tmp_path / "asked").read_text()
    assert "-step2 " in (tmp_path / "asked").read_text()
    squeue.write_text("#!/bin/sh\n")
    ended = "growth step 2's job has ended without finishing it: see {}; fix it and run slurm/grow_run.sh\n"
    assert (main(command), capsys.readouterr().out) == (1, ended.format(run.path / "slurm"))
    for job, written in ((17, 2), (16, 1)):
        log = run.path / f"slurm/a_run-123-step2-{job}.log"
        log.touch()
        os.utime(log, (written, written))
    assert (main(command), capsys.readouterr().out) == (1, ended.format(run.path / "slurm/a_run-123-step2-17.log"))


def test_a_watch_from_another_folder_says_so(
    data: Path, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Submissions(run.path).add(2, "growth step 2: job 17")
    monkeypatch.chdir(tmp_path)
    command = ["watch", "--config", str(data / "config.yaml"), "--output-dir", str(run.path), "--growth", "2", "--once"]
    assert main(command) == 2
    assert "there is no slurm/common.sh here; run it from the project's folder" in capsys.readouterr().err


def test_a_step_that_is_finished_meanwhile_is_no_failure(
    data: Path, run: RunFolder, submit: Path, squeue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It comes to its end, and its job with it, after the watch has looked and before Slurm is asked."""
    Submissions(run.path).add(2, "growth step 2: job 17")
    record = run.record_file(2, phases(2)[-1])
    squeue.write_text(f'#!/bin/sh\nmkdir -p "{record.parent}"; echo "{{}}" > "{record}"\n')
    command = ["watch", "--config", str(data / "config.yaml"), "--output-dir", str(run.path), "--once"]
    assert main(command) == 0
    assert "ONE_AT_A_TIME=1" in submit.read_text()  # the next step is due
    assert "ended without" not in capsys.readouterr().out


def test_a_submission_that_fails_is_not_kept(
    data: Path, run: RunFolder, submit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grow run.sh").write_text("#!/bin/sh\nexit 2\n")
    command = ["watch", "--config", str(data / "config.yaml"), "--output-dir", str(run.path), "--once"]
    assert main(command) == 2
    assert "growth step 2 is due, but was not submitted" in capsys.readouterr().err
    assert Submissions(run.path).read() == {}


def test_on_a_full_disk_a_step_is_submitted_once(
    data: Path, run: RunFolder, submit: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_space(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise KeyboardInterrupt

    looks = 0
    monkeypatch.setattr(submissions, "write_json", no_space)
    monkeypatch.setattr(cli_watch.time, "sleep", sleep)
    assert main(["watch", "--config", str(data / "config.yaml"), "--output-dir", str(run.path)]) == 130
    assert len(submit.read_text().splitlines()) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("error: ")
    assert "watch.json cannot be written: No space left on device; submitted: growth step 2: job 17" in first
    assert second == "growth step 2 is submitted and not finished: growth step 2: job 17"


@pytest.mark.parametrize("option", [["--growth", "nan"], ["--every", "inf"], ["--every", "nan"], ["--plateau", "nan"]])
def test_numbers_that_make_no_sense_are_refused(
    option: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["watch", "--config", str(data / "config.yaml"), "--output-dir", str(tmp_path / "run"), "--dry-run"]
    assert main([*arguments, *option]) == 2
    assert option[0] in capsys.readouterr().err


@pytest.mark.parametrize("word", ["CONFIG=other.yaml", "RUN_DIR=other"])
def test_another_run_behind_the_dashes_is_refused(
    word: str, data: Path, tmp_path: Path, submit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["watch", "--config", str(data / "config.yaml"), "--output-dir", str(tmp_path / "run"), "--once"]
    assert main([*command, "--", "DEVICE=cpu", word]) == 2
    assert f"{word} contradicts --config and --output-dir" in capsys.readouterr().err
    assert not submit.exists()
