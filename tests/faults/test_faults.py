"""Faults of every kind in whole runs: the run started again ends with the weights of the run left alone."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn
from unittest import mock

import pytest
import torch

from growclip_ds.growth.phases import Phase
from growclip_ds.run.folder import RunFolder
from tests.pipeline_runs import assert_same_weights, phases, write_data
from tests.ranks import Ranks

STEPS = 3  # of the data; most runs are of fewer
PROMPTLY = 20.0  # seconds in which the other ranks end, of which torch's own clean-up may take most
FIRST = ("--growth-step", "1")  # of 36 iterations
OPTIONS = [
    "epochs.first=12",
    "checkpoint.every_iterations=2",
    "growth.frozen=[conv_layers, image_heads, text_blocks, text_heads]",  # four candidates
    "evaluation.datasets=[]",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), STEPS)


def arguments(data: Path, run: Path, *more: str) -> list[str]:
    files = ["--deepspeed_config", str(data / "zero2.json"), "--config", str(data / "config.yaml")]
    return [*files, "--output-dir", str(run), *OPTIONS, *more]


class Whole(NamedTuple):
    """A run left alone: of so many growth steps, and the seconds it took."""

    run: RunFolder
    steps: int
    seconds: float


def leave_alone(data: Path, folder: Path, steps: int) -> Whole:
    start = time.monotonic()
    ranks = Ranks(arguments(data, folder / "run", f"growth.steps={steps}"), folder / "log")
    assert ranks.wait() == [0, 0], ranks.output
    return Whole(RunFolder(folder / "run"), steps, time.monotonic() - start)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The model of its second growth step has grown: all kinds of phases have been run."""
    return leave_alone(data, tmp_path_factory.mktemp("whole"), steps=2)


@pytest.fixture(scope="module")
def longer(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Its third growth step grows what has grown already."""
    return leave_alone(data, tmp_path_factory.mktemp("longer"), steps=3)


def wait_for_checkpoint(ranks: Ranks, run: RunFolder) -> None:
    ranks.wait_for("step 1/3 train: model")
    while not list(run.checkpoints(1, Phase.TRAIN).glob("iteration_*")):
        assert ranks.processes[0].is_alive(), ranks.output
        time.sleep(0.01)


def assert_first_step_ends_the_same(data: Path, run: RunFolder, log: Path, whole: Whole, *options: str) -> None:
    ranks = Ranks(arguments(data, run.path, *FIRST, *options), log)
    assert ranks.wait() == [0, 0], ranks.output
    assert_same_weights(whole.run, run, phases_of(1))


def phases_of(steps: int) -> list[tuple[int, Phase]]:
    return [(step, phase) for step in range(1, steps + 1) for phase in phases(step)]


def kill_at_random(data: Path, whole: Whole, folder: Path, kills: int, seed: int) -> list[str]:
    """Kills ranks, all or one, at instants drawn over the length of a run; a run that gets to its end is compared, and
    the next one begun. Returns what was killed when.
    """
    chance, steps = random.Random(seed), f"growth.steps={whole.steps}"
    run, told = RunFolder(folder / "run"), []
    while len(told) < kills:
        ranks = Ranks(arguments(data, run.path, steps), folder / "log")
        instant, only = chance.uniform(0, whole.seconds), chance.choice([None, 0, 1])
        for process in ranks.processes:
            process.join(instant if process is ranks.processes[0] else 0)
        if not any(process.is_alive() for process in ranks.processes):
            assert ranks.wait() == [0, 0], ranks.output
            assert_same_weights(whole.run, run, phases_of(whole.steps))
            shutil.rmtree(run.path)
            continue
        if only is None:
            ranks.kill()
        else:
            begun = "model (" in ranks.output  # until the ranks have met, only a launcher can end one that waits
            ranks.send(signal.SIGKILL, only)
            codes = ranks.wait(PROMPTLY if begun else 5.0)
            assert not begun or codes[1 - only] in (0, 1, 2), (codes, ranks.output)
        told.append(f"{'all' if only is None else only} after {instant:.1f} s")
    ranks = Ranks(arguments(data, run.path, steps), folder / "log")
    assert ranks.wait() == [0, 0], ranks.output
    assert_same_weights(whole.run, run, phases_of(whole.steps))
    return told


def test_killed_at_random_instants(data: Path, whole: Whole, tmp_path: Path) -> None:
    assert len(kill_at_random(data, whole, tmp_path, kills=2, seed=1)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_fifty_times(data: Path, longer: Whole, tmp_path: Path, seed: int) -> None:
    told = kill_at_random(data, longer, tmp_path, kills=10, seed=100 + seed)
    print("\n".join(told))
    assert len(told) == 10


# All three are requests, as tests/test_signals.py says; only SIGINT is told apart from one that is repeated.
@pytest.mark.parametrize(
    "number", [*(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGTERM, signal.SIGUSR1)), signal.SIGINT]
)
def test_asked_to_stop(data: Path, whole: Whole, tmp_path: Path, number: int) -> None:
    """One rank alone gets the signal, and gets it again while it writes."""
    run = RunFolder(tmp_path / "run")
    ranks = Ranks(arguments(data, run.path, *FIRST), tmp_path / "log")
    wait_for_checkpoint(ranks, run)
    for _ in range(3):
        ranks.send(number, 1)
        time.sleep(0.05)
    assert ranks.wait(30) == [75, 75], ranks.output
    assert "stopped on request; run the same command to resume" in ranks.output
    assert "Traceback" not in ranks.output
    assert_first_step_ends_the_same(data, run, tmp_path / "log", whole)


def wait_for_no_lock(rank: int) -> None:
    mock.patch("growclip_ds.run.lock.WAIT", 0.0).start()


def test_started_twice(data: Path, whole: Whole, tmp_path: Path) -> None:
    """The second start is refused, the first one goes on as if there had been none."""
    run = RunFolder(tmp_path / "run")
    first = Ranks(arguments(data, run.path, *FIRST), tmp_path / "log")
    first.wait_for("step 1/3 train: model")
    second = Ranks(arguments(data, run.path, *FIRST), tmp_path / "second", wait_for_no_lock)
    assert second.wait(60) == [2, 2], second.output
    assert f"pid {first.processes[0].pid}); end that process first" in second.output.splitlines()[-1]
    assert "Traceback" not in second.output
    assert first.wait() == [0, 0], first.output
    assert_same_weights(whole.run, run, phases_of(1))


def fail_in_iteration(rank: int, fail: Callable[[], object]) -> None:
    """Has rank 1 do something in its eighth iteration."""
    from growclip_ds.training import iteration, trainer

    def train(*args, **options):
        if rank == 1 and next(count) == 8:
            fail()
        return iteration.train_iteration(*args, **options)

    count = iter(range(10**6))
    mock.patch.object(trainer, "train_iteration", train).start()


def raise_in_iteration(rank: int) -> None:
    def fail() -> NoReturn:
        raise ZeroDivisionError("rank one cannot go on")

    fail_in_iteration(rank, fail)


class Failed(NamedTuple):
    """A first growth step that an exception on rank 1 has ended in its eighth iteration; take a copy to go on with it.

    Attributes:
        run: its folder.
        codes: of the ranks.
        seconds: from the exception to the end of all ranks.
        output: of the ranks.
    """

    run: RunFolder
    codes: list[int]
    seconds: float
    output: str


@pytest.fixture(scope="module")
def failed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Failed:
    folder = tmp_path_factory.mktemp("failed")
    ranks = Ranks(arguments(data, folder / "run", *FIRST), folder / "log", raise_in_iteration)
    ranks.wait_for("ZeroDivisionError")
    start = time.monotonic()
    codes = ranks.wait()
    return Failed(RunFolder(folder / "run"), codes, time.monotonic() - start, ranks.output)


def test_an_exception_on_one_rank_ends_all(failed: Failed) -> None:
    assert failed.codes == [1, 1]
    assert failed.seconds < PROMPTLY
    assert failed.output.splitlines()[-2:] == [
        "ZeroDivisionError: rank one cannot go on",
        "train.py: error: rank 1 failed: ZeroDivisionError: rank one cannot go on",
    ]
    assert failed.output.count("Traceback") == 1


def use_all_memory(rank: int) -> None:
    fail_in_iteration(rank, lambda: torch.empty(2**50, dtype=torch.uint8))  # more than there is


def test_a_rank_without_memory_says_what_needs_less(data: Path, tmp_path: Path) -> None:
    ranks = Ranks(arguments(data, tmp_path / "run", *FIRST), tmp_path / "log", use_all_memory)
    assert ranks.wait(60) == [2, 2], ranks.output
    last = ranks.output.splitlines()[-1]
    assert last.startswith("train.py: error: growth step 1, phase train: rank 1 ran out of memory (")
    assert "lower training.micro_batch_size (now 8)" in last
    assert "Traceback" not in ranks.output


def hang_in_iteration(rank: int) -> None:
    from growclip_ds.data import stream

    class Stuck(stream.TrainingStream):
        def __iter__(self):
            for iteration, batches in enumerate(super().__iter__()):
                if rank == 1 and iteration == 4:
                    time.sleep(600)
                yield batches

    mock.patch("growclip_ds.pipeline.phase.TrainingStream", Stuck).start()


def test_a_rank_that_hangs_is_named(data: Path, tmp_path: Path) -> None:
    ranks = Ranks(arguments(data, tmp_path / "run", "health.hang_minutes=0.1"), tmp_path / "log", hang_in_iteration)
    assert ranks.wait(60) == [1, 1], ranks.output
    assert (
        "no rank has made progress for 0.1 minutes (health.hang_minutes): rank 1, last seen at iteration 4, is behind "
        "the others; the run ends"
    ) in ranks.output
    assert "rank 1 hangs here:" in ranks.output
    assert "in __iter__" in ranks.output.partition("rank 1 hangs here:")[2]  # where it sleeps


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_is_named(data: Path, tmp_path: Path, rank: int) -> None:
    """A process that does nothing at all any more, as on a machine that has died."""
    ranks = Ranks(arguments(data, tmp_path / "run", "health.hang_minutes=0.3"), tmp_path / "log")
    ranks.wait_for("step 1/3 train: model")
    ranks.send(signal.SIGSTOP, rank)
    ranks.processes[1 - rank].join(90)
    assert ranks.processes[1 - rank].exitcode == 1, ranks.output
    assert f"rank {rank}" in ranks.output
    assert "does not answer" in ranks.output
    ranks.kill()


def fill_disk(rank: int) -> None:
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))


def test_a_disk_that_is_full(data: Path, whole: Whole, failed: Failed, tmp_path: Path) -> None:
    """When a run goes on that an exception had ended."""
    run = RunFolder(tmp_path / "run")
    shutil.copytree(failed.run.path, run.path)
    ranks = Ranks(arguments(data, run.path, *FIRST), tmp_path / "log", fill_disk)
    assert ranks.wait(60) == [2, 2], ranks.output
    assert "weights-00001-of-00002.safetensors cannot be written: [Errno 27] File too large; make room" in ranks.output
    assert "Traceback" not in ranks.output
    assert not list(run.path.rglob("*.partial"))
    assert_first_step_ends_the_same(data, run, tmp_path / "log", whole)


def test_an_output_folder_that_is_removed(data: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    ranks = Ranks(arguments(data, run.path), tmp_path / "log")
    ranks.wait_for("step 1/3 train: model")
    run.path.rename(tmp_path / "elsewhere")
    assert ranks.wait(60) == [2, 2], ranks.output
    assert "config.yaml was removed during the run, so nothing can be saved any more" in ranks.output.splitlines()[-1]
    assert not run.path.exists() or not list(run.path.glob("step_*/*/weights"))


def test_shards_that_become_unreadable(data: Path, whole: Whole, tmp_path: Path) -> None:
    """Cut to nothing while they are being read, put back later; no sample is left out of the run for it."""
    copied = tmp_path / "data"
    shutil.copytree(data / "scenes", copied / "scenes")
    shards = [f"data.subsets.{i}.shards={copied}/scenes/train/subset_{i + 1}" for i in range(STEPS)]
    run = RunFolder(tmp_path / "run")
    ranks = Ranks(arguments(data, run.path, *FIRST, *shards), tmp_path / "log")
    wait_for_checkpoint(ranks, run)
    for shard in copied.rglob("*.tar"):
        shard.write_bytes(b"")
    assert ranks.wait(60) == [2, 2], ranks.output
    assert "with shard cannot be read or has changed" in ranks.output
    assert "Traceback" not in ranks.output
    shutil.copytree(data / "scenes", copied / "scenes", dirs_exist_ok=True)
    assert_first_step_ends_the_same(data, run, tmp_path / "log", whole, *shards)
