"""The loop of a phase: what it says about waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from growclip_ds.data.batch import Batch
from growclip_ds.data.fault_limit import FaultLimit
from growclip_ds.data.shards import index_shards
from growclip_ds.data.stream import TrainingStream
from growclip_ds.monitor import Progress
from growclip_ds.signals import Stopped
from growclip_ds.training.iteration import Outcome
from growclip_ds.training.trainer import Trainer
from tests.data.corpus import small_tokenizer, write_shards
from tests.group import Groups

COMPUTING = 0.02  # seconds of an iteration
WAITING = 0.06  # seconds more of the slow rank, from one iteration to the next


class SlowStream(TrainingStream):
    """Keeps one rank waiting for each batch."""

    def __iter__(self) -> Iterator[list[Batch]]:
        for batches in super().__iter__():
            time.sleep(WAITING if self.rank == self.world_size - 1 else 0)
            yield batches


class SlowTrainer(Trainer):
    """Computes for a while and nothing."""

    def _train_step(self, *_: object) -> Outcome:
        time.sleep(COMPUTING)
        return Outcome(1.0, 1.0, 1.0, False)


def train_on(stream_type: type[TrainingStream], folder: str) -> list[Progress]:
    reports: list[Progress] = []
    trainer_on(stream_type, folder, reports).run(lambda _: 0.1)
    return reports


def trainer_on(
    stream_type: type[TrainingStream],
    folder: str,
    reports: list[Progress],
    trainer_type: type[SlowTrainer] = SlowTrainer,
) -> SlowTrainer:
    index = index_shards(sorted(Path(folder).glob("*.tar")))
    return trainer_type(
        engine=SimpleNamespace(device=torch.device("cpu"), loss_scale=None),
        stream=stream_type(index, small_tokenizer(), image_size=16, global_batch_size=2, epochs=1, seed=0),
        limit=FaultLimit(len(index), 0.0),
        health=SimpleNamespace(skipped=0),
        keeper=mock.Mock(is_due_by_clock=False, is_written=False, is_due=lambda _: False),
        stop=SimpleNamespace(requested=False),
        watch=mock.Mock(),
        report=reports.append,
        report_every=5,
    )


def test_a_slow_loader_is_seen(tmp_path: Path) -> None:
    folder = str(write_shards(tmp_path, samples=20))
    slow, fast = train_on(SlowStream, folder), train_on(TrainingStream, folder)
    assert [report.iteration for report in slow] == [5, 10]
    for report in slow:
        assert report.data_wait_share == pytest.approx(WAITING / (WAITING + COMPUTING), abs=0.15)
    assert fast[-1].data_wait_share < 0.4


def test_a_stop_while_the_model_is_evaluated_leaves_a_checkpoint(tmp_path: Path) -> None:
    evaluated: list[int] = []

    def evaluate(iteration: int) -> None:
        evaluated.append(iteration)
        if iteration == 6:
            raise Stopped

    trainer = trainer_on(TrainingStream, str(write_shards(tmp_path, samples=20)), [])
    trainer.evaluate, trainer.evaluate_after = evaluate, {3, 6, 9}
    with pytest.raises(Stopped):
        trainer.run(lambda _: 0.1)
    assert evaluated == [3, 6]
    trainer.keeper.write.assert_called_once_with(6, now=True)
    assert trainer.seen["pairs_seen"] == 12
    assert trainer.seen["text_tokens_seen"] >= 3 * 12


def test_a_short_batch_says_nothing_of_the_loss(tmp_path: Path) -> None:
    class SizeAsLoss(SlowTrainer):
        def _train_step(self, iteration: int, *_: object) -> Outcome:
            return Outcome(float(self.stream.order.batch_size(iteration)), 1.0, 1.0, False)

    reports: list[Progress] = []
    trainer = trainer_on(TrainingStream, str(write_shards(tmp_path, samples=5)), reports, SizeAsLoss)
    trainer.report_every = 1
    trainer.run(lambda _: 0.1)
    assert [report.samples for report in reports] == [2, 2, 1]
    assert [report.loss for report in reports] == [2.0, 2.0, 2.0]


def test_waiting_for_a_batch_is_watched(tmp_path: Path) -> None:
    """The first one too, and the one after an evaluation, whose own time is not."""
    places: list[str] = []

    class Noting(TrainingStream):
        def __iter__(self) -> Iterator[list[Batch]]:
            for batches in super().__iter__():
                waited_at.append(places[-1])
                yield batches

    waited_at: list[str] = []
    evaluated_at: list[str] = []
    trainer = trainer_on(Noting, str(write_shards(tmp_path, samples=8)), [])
    trainer.watch = mock.Mock(reached=places.append)
    trainer.evaluate, trainer.evaluate_after = lambda _: evaluated_at.append(places[-1]), {2}
    trainer.run(lambda _: 0.1)
    assert waited_at == [f"iteration {number}" for number in (1, 1, 2, 3)]
    assert evaluated_at == [""]


def test_the_rank_that_waits_most_counts(tmp_path: Path, group: Groups) -> None:
    folder = str(write_shards(tmp_path, samples=20))
    for reports in group(2).run(train_on, SlowStream, folder):
        assert reports[-1].data_wait_share > 0.5
