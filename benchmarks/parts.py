"""Where the time of a training iteration goes."""

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
    """Laps of one iteration by name, on the device's own clock: CUDA events where there is a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = [("", self._now())]

    def lap(self, name: str) -> None:
        """Ends a lap, which began where the last one ended."""
        self._marks.append((name, self._now()))

    def seconds(self) -> dict[str, float]:
        """Time of all laps by name; waits for the device."""
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
    """An engine that can say where an iteration's time goes. Unless `timed`, it is the engine that training has.

    Laps end where calls of the engine, or forward passes of the parts, begin or end, in the stream that computes. What
    ZeRO communicates in another stream counts where that stream is waited for: at stage 1 in the step, at 2 and 3 in
    the backward pass too, at 3 also in the parts, whose weights are gathered.
    """

    _watch: Stopwatch | None = None

    @contextmanager
    def timed(self, parts: Mapping[str, str]) -> Iterator[Callable[[Callable[[], Any]], dict[str, float]]]:
        """While it lasts, gives a function that runs one iteration and returns its seconds by part.

        Args:
            parts: names of submodules whose forward passes are timed, by the part's name.
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
        if self._watch is not None and isinstance(outputs, tuple):  # features, from which the loss is yet to be made
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
    """Each part's share of an iteration, the median of several."""
    shares: dict[str, list[float]] = defaultdict(list)
    for seconds in iterations:
        for part, duration in seconds.items():
            shares[part].append(duration / sum(seconds.values()))
    return {part: statistics.median(values) for part, values in shares.items()}
