"""The training loop of a phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from growclip_ds.architecture import Architecture
from growclip_ds.data.pictures import normalise
from growclip_ds.data.stream import TrainingStream
from growclip_ds.engine import Engine
from growclip_ds.iteration import train_iteration
from growclip_ds.monitor import Progress

T = TypeVar("T")


def train(
    engine: Engine,
    stream: TrainingStream,
    learning_rate: Callable[[int], float],
    subnet: Callable[[int], Architecture | None],
    report: Callable[[Progress], None],
    report_every: int,
) -> int:
    """Trains on the stream to its end. Collective.

    Args:
        engine: of a GrowCLIP.
        stream: gives this rank's micro-batches, an iteration at a time.
        learning_rate: of an iteration, counted from 0.
        subnet: what an iteration trains, the same on every rank; None: the whole model.
        report: gets the progress, every `report_every` iterations and at the end.

    Returns:
        Iterations without an update, gradients not being finite.
    """
    clock = _Clock()
    samples = skipped = reported = 0
    for iteration, batches in enumerate(clock.timed(iter(stream)), start=stream.start_iteration):
        micro_batches = []
        for batch in batches:
            moved = batch.to(engine.device, non_blocking=True)
            micro_batches.append((normalise(moved.images, engine.dtype), moved.text))
        rate = learning_rate(iteration)
        outcome = train_iteration(engine, micro_batches, rate, subnet(iteration))
        samples += stream.order.batch_size(iteration)
        skipped += outcome.skipped
        done = iteration + 1
        if done % report_every == 0 or done == stream.iterations:
            seconds, waited = clock.lap()
            progress = Progress(
                iteration=done,
                iterations=stream.iterations,
                loss=outcome.loss,
                learning_rate=rate,
                logit_scale=outcome.logit_scale,
                gradient_norm=outcome.gradient_norm,
                skipped=skipped - reported,
                samples_per_second=samples / seconds,
                data_wait_share=waited / seconds,
            )
            report(progress)
            samples, reported = 0, skipped
    return skipped


class _Clock:
    """Time since the last lap, and how much of it went by waiting for an iterator."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0

    def timed(self, iterator: Iterator[T]) -> Iterator[T]:
        while True:
            before = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - before
            yield item

    def lap(self) -> tuple[float, float]:
        now = time.perf_counter()
        seconds, waited = now - self._start, self._waited
        self._start, self._waited = now, 0.0
        return seconds, waited
