"""Breakdown of the time of a training iteration by part."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from growclip_ds.training.engine import Engine

OTHER_FORWARD, LOSS, BACKWARD, STEP, REST = "other forward", "loss", "backward", "optimizer and communication", "rest"


class Stopwatch:
    """Times the named intervals of one iteration on the device: with CUDA events on a GPU, else with the wall clock."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = [("", self._now())]

    def lap(self, name: str) -> None:
        """Ends the current interval under this name, and begins the next."""
        self._marks.append((name, self._now()))

    def seconds(self) -> dict[str, float]:
        """Total seconds by name; synchronises with the device."""
        if self._on_gpu:
            torch.cuda.synchronize()
        total: dict[str, float] = defaultdict(float)
        for (_, start), (name, end) in zip(self._marks, self._marks[1:], strict=False):
            total[name] += start.elapsed_time(end) / 1000 if self._on_gpu else end - start
        return dict(total)

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class TimedEngine(Engine):
    """An engine that can time the parts of an iteration. Outside `timed`, it is the engine of training.

    Intervals begin and end where calls of the engine, and forward passes of the parts, do, in the compute stream.
    ZeRO's communication in another stream counts where the compute stream waits for it: at stage 1 in the step, at
    stages 2 and 3 also in the backward pass, at stage 3 also in the parts, whose weights are gathered.
    """

    _watch: Stopwatch | None = None

    @contextmanager
    def timed(self, parts: Mapping[str, str]) -> Iterator[Callable[[Callable[[], Any]], dict[str, float]]]:
        """Within this context, provides a function that runs one iteration and returns its seconds by part.

        Args:
            parts: names of the submodules whose forward passes are timed, by the name of the part.
        """
        hooks = []
        for part, path in parts.items():
            module: nn.Module = self.module.get_submodule(path)
            hooks.append(module.register_forward_pre_hook(lambda *_: self._lap(OTHER_FORWARD)))
            hooks.append(module.register_forward_hook(lambda *_, part=part: self._lap(part)))
        try:
            yield self._run
        finally:
            for hook in hooks:
                hook.remove()

    def __call__(self, *inputs: Any) -> Any:
        outputs = super().__call__(*inputs)
        self._lap(OTHER_FORWARD)
        if self._watch is not None and isinstance(outputs, tuple):  # features, from which the loss follows
            outputs[0].register_hook(lambda _: self._lap(LOSS))
        return outputs

    def backward(self, loss: Tensor, final: bool = True) -> None:
        self._lap(LOSS)
        super().backward(loss, final)
        self._lap(BACKWARD)

    def step(self, *arguments: Any) -> None:
        super().step(*arguments)
        self._lap(STEP)

    def _lap(self, name: str) -> None:
        if self._watch is not None:
            self._watch.lap(name)

    def _run(self, iteration: Callable[[], Any]) -> dict[str, float]:
        self._watch = Stopwatch(self.device)
        iteration()
        self._lap(REST)
        seconds = self._watch.seconds()
        self._watch = None
        return seconds


def median_shares(iterations: list[dict[str, float]]) -> dict[str, float]:
    """The median over iterations of each part's share of the time."""
    shares: dict[str, list[float]] = defaultdict(list)
    for seconds in iterations:
        for part, duration in seconds.items():
            shares[part].append(duration / sum(seconds.values()))
    return {part: statistics.median(values) for part, values in shares.items()}
