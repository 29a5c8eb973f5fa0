"""The training loop of a phase."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from growclip_ds import distributed
from growclip_ds.architecture import Architecture
from growclip_ds.data.batch import Batch
from growclip_ds.data.fault_limit import FaultLimit
from growclip_ds.data.stream import TrainingStream
from growclip_ds.distributed.watchdog import Watchdog
from growclip_ds.monitor import Progress
from growclip_ds.signals import Stopped, StopRequest
from growclip_ds.training.engine import Engine
from growclip_ds.training.health import Health
from growclip_ds.training.iteration import Outcome, train_iteration
from growclip_ds.training.resume import CheckpointKeeper

T = TypeVar("T")


@dataclass
class Trainer:
    """Trains a model on a stream until its end.

    Attributes:
        engine: the engine that holds the model.
        stream: yields this rank's micro-batches, a list per iteration.
        limit: limit on broken samples.
        health: checks the outcome of every iteration.
        keeper: writes the checkpoints.
        stop: whether this rank was asked to stop.
        watch: the watchdog, which is told this rank's position.
        report: receives the progress, every `report_every` iterations and after the last one.
        report_every: iterations between reports.
        evaluate: called with the number of finished iterations; if it raises Stopped, the resumed training calls it
            again.
        evaluate_after: numbers of finished iterations after which `evaluate` is called.
        seen: numbers of image-caption pairs and caption tokens that this rank has trained on.
    """

    engine: Engine
    stream: TrainingStream
    limit: FaultLimit
    health: Health
    keeper: CheckpointKeeper
    stop: StopRequest
    watch: Watchdog
    report: Callable[[Progress], None]
    report_every: int
    evaluate: Callable[[int], None] = lambda _: None
    evaluate_after: Collection[int] = ()
    seen: Counter[str] = field(default_factory=Counter)

    def run(
        self, learning_rate: Callable[[int], float], subnet: Callable[[int], Architecture | None] = lambda _: None
    ) -> None:
        """Trains. Collective.

        Args:
            learning_rate: learning rate by iteration, from 0.
            subnet: the subnet to train by iteration, the same on every rank; None for the whole model.

        Raises:
            InputError: on every rank: too many samples are broken (raised before their iteration), `health` stops the
                run, or a checkpoint cannot be written.
            Stopped: on every rank, after a whole iteration and its checkpoint, if some rank was asked to stop.
        """
        interval = _Interval()
        loss, most = math.nan, 0
        stream = self.stream
        self.watch.reached(f"iteration {stream.start_iteration + 1}")  # the wait for its batch is watched too
        for iteration, batches in enumerate(interval.waiting_for(iter(stream)), start=stream.start_iteration):
            size = stream.order.batch_size(iteration)
            self.watch.reached(f"iteration {iteration + 1}")
            stopping, due, counts = self._agree(batches, size)
            rate = learning_rate(iteration)
            outcome = self._train_step(iteration, batches, rate, subnet(iteration), counts)
            for batch in batches:
                self.seen.update(pairs_seen=len(batch), text_tokens_seen=batch.text.ids.numel())
            interval.samples += size
            interval.skipped += outcome.skipped
            if size >= most:  # a smaller batch has fewer negatives and so a lower loss
                loss, most = outcome.loss, size
            done = iteration + 1
            if done % self.report_every == 0 or done == stream.iterations:
                self.report(self._progress(done, rate, outcome._replace(loss=loss), interval))
                interval.start()
            if done in self.evaluate_after and not stopping:
                self.watch.reached("")
                with interval.stopped():
                    try:
                        self.evaluate(done)
                    except Stopped:
                        stopping = True
                self.watch.reached(f"iteration {done}")
            if done < stream.iterations and (stopping or due or self.keeper.is_due(done)):
                self.keeper.write(done, now=stopping)
                if stopping:
                    raise Stopped
        self.keeper.publish()

    def _agree(self, batches: list[Batch], size: int) -> tuple[bool, bool, list[int]]:
        """Agrees with the other ranks in one all-reduce, checks the limit on broken samples, and publishes a checkpoint
        once all ranks have written it. The host waits for the result here, where the device has nothing else to do.

        Returns:
            Whether to stop after this iteration, whether a checkpoint is due after it, and each rank's number of pairs.
        """
        pairs = sum(map(len, batches))
        counts = self.limit.counts(self.stream.faults, usable=pairs)
        flags = [self.stop.requested, self.keeper.is_due_by_clock, self.keeper.is_written]
        pairs_of = [pairs if rank == distributed.rank() else 0 for rank in range(distributed.world_size())]
        mine = torch.tensor([*counts, *map(int, flags), *pairs_of], dtype=torch.int64, device=self.engine.device)
        totals = distributed.all_reduce_sum(mine).tolist()
        self.limit.check(totals[: len(counts)], size)
        stopping, due, written, *pairs_of = totals[len(counts) :]
        if written == distributed.world_size():
            self.keeper.publish()
        return bool(stopping), bool(due), pairs_of

    def _train_step(
        self, iteration: int, batches: list[Batch], rate: float, architecture: Architecture | None, counts: list[int]
    ) -> Outcome:
        moved = [batch.to(self.engine.device, non_blocking=True) for batch in batches]
        micro_batches = [(batch.images, batch.text) for batch in moved]

        def attempt() -> Outcome:
            return train_iteration(self.engine, micro_batches, rate, architecture, self.health.loss_limit, counts)

        keys = itertools.chain.from_iterable(batch.keys for batch in batches)
        return self.health.check(attempt(), attempt, self.engine, iteration + 1, list(keys))

    def _progress(self, done: int, rate: float, outcome: Outcome, interval: _Interval) -> Progress:
        loss_scale = self.engine.loss_scale
        return Progress(
            iteration=done,
            iterations=self.stream.iterations,
            loss=outcome.loss,
            learning_rate=rate,
            logit_scale=outcome.logit_scale,
            gradient_norm=outcome.gradient_norm,
            skipped=interval.skipped,
            loss_scale=None if loss_scale is None else loss_scale["cur_scale"],
            samples=interval.samples,
            seconds=interval.seconds,
            data_wait_share=max(distributed.all_gather_object(interval.waited / interval.seconds)),  # others wait
            broken_samples={str(cause): n for cause, n in self.limit.broken.items()},
        )


class _Interval:
    """Counts and times since the last report.

    Attributes:
        samples: number of samples, over all ranks.
        skipped: number of iterations without an update.
        waited: seconds that this rank waited for the stream.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.samples = self.skipped = 0
        self.waited = 0.0
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def waiting_for(self, iterator: Iterator[T]) -> Iterator[T]:
        """Yields the iterator's items; the time spent in the iterator counts as waiting."""
        while True:
            before = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.waited += time.perf_counter() - before
            yield item

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """A context whose time is not counted."""
        before = time.perf_counter()
        yield
        self._start += time.perf_counter() - before
