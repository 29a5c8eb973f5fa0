"""Numerical health: non-finite iterations and loss spikes are skipped on all ranks alike, reported and limited."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from growclip_ds import distributed
from growclip_ds.config.sections import HealthSection
from growclip_ds.errors import InputError
from growclip_ds.files import write_json
from growclip_ds.training.engine import Engine
from growclip_ds.training.iteration import Outcome

MEDIAN_OVER = 100  # last losses
FEWEST_LOSSES = 20  # with fewer, no loss counts as a spike


class Health:
    """Checks the iterations of a phase. Every rank makes the same calls with the same outcomes.

    Args:
        section: the `health` section of the configuration.
        folder: folder for the reports of iterations without an update, one file per iteration.
        note: shows a line to the user.

    Attributes:
        skipped: number of the phase's iterations without an update.
        in_a_row: number of consecutive iterations without an update up to now, not counting the loss scale's search.
    """

    def __init__(self, section: HealthSection, folder: Path, note: Callable[[str], None]) -> None:
        self.section, self.folder, self.note = section, folder, note
        self.skipped = self.in_a_row = 0
        self._losses: deque[float] = deque(maxlen=MEDIAN_OVER)

    @property
    def state(self) -> dict[str, Any]:
        """The state that a resumed phase restores, as JSON."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "losses": list(self._losses)}

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
        self._losses = deque(state["losses"], maxlen=MEDIAN_OVER)

    @property
    def loss_limit(self) -> float:
        """The loss at and above which an iteration is a spike; infinite if there is no limit (yet)."""
        if self.section.spike_factor is None or len(self._losses) < FEWEST_LOSSES:
            return math.inf
        return self.section.spike_factor * statistics.median(self._losses)

    def check(
        self, outcome: Outcome, again: Callable[[], Outcome], engine: Engine, iteration: int, keys: Sequence[str]
    ) -> Outcome:
        """Counts an iteration and handles a skipped update. Collective if there was no update.

        A non-finite iteration is repeated with hooks that find the first non-finite tensor. If the repetition succeeds,
        as after a transient hardware error, its outcome is the iteration's.

        Args:
            outcome: the iteration's outcome, the same on every rank.
            again: repeats the iteration.
            engine: the engine that ran it.
            iteration: number of the iteration, from 1.
            keys: keys of this rank's samples.

        Returns:
            The outcome, or that of the repetition if this made the update.

        Raises:
            InputError: on every rank, if the limit of consecutive iterations without an update is reached, or the loss
                is a spike at which the run is to stop.
        """
        if not outcome.skipped:
            return self._count(outcome)
        limit = self.loss_limit
        if math.isfinite(outcome.loss):
            if outcome.loss >= limit:
                if engine.loss_scale_before is not None:
                    engine.loss_scale = engine.loss_scale_before  # no overflow: the gradients were made NaN
                return self._skip_spike(outcome, limit, iteration, keys)
            if engine.searches_loss_scale:
                self.skipped += 1
                return outcome
        loss_scale = engine.loss_scale
        with _FirstBadTensor(engine.module) as first:
            repeated = again()
        if not repeated.skipped:
            self.note(f"iteration {iteration}: gradients were not finite, but were finite when it was repeated")
            return self._count(repeated)
        if loss_scale is not None:
            engine.loss_scale = loss_scale  # lowered once per iteration, not twice
        found = [place for place in distributed.all_gather_object(first.found) if place is not None]
        tensor = "the loss" if not found else min(found)[1]
        self._skip(f"{tensor} is not finite", outcome, iteration, keys, tensor=tensor)
        return outcome

    def _count(self, outcome: Outcome) -> Outcome:
        self.in_a_row = 0
        if self.section.spike_factor is not None:
            self._losses.append(outcome.loss)
        return outcome

    def _skip_spike(self, outcome: Outcome, limit: float, iteration: int, keys: Sequence[str]) -> Outcome:
        what = f"the loss is {outcome.loss:.3f}, health.spike_factor allows {limit:.3f}"
        self._skip(what, outcome, iteration, keys, loss_limit=limit)
        if self.section.spike_action == "stop":
            raise InputError(
                f"iteration {iteration}: {what}; {self._file(iteration)} lists its samples. Restart the run with "
                "health.spike_action skip or a higher health.spike_factor; it resumes from its last checkpoint"
            )
        return outcome

    def _skip(self, what: str, outcome: Outcome, iteration: int, keys: Sequence[str], **more: Any) -> None:
        self.skipped += 1
        self.in_a_row += 1
        report = {"iteration": iteration, "what": what, "loss": repr(outcome.loss), **more}
        report["keys"] = distributed.all_gather_object(list(keys))
        distributed.on_main(lambda: write_json(self._file(iteration), report))
        self.note(f"iteration {iteration}: no update, {what}; {self._file(iteration)} lists its samples")
        if self.in_a_row >= self.section.max_bad_iterations:
            raise InputError(
                f"{self.in_a_row} iterations in a row without an update, the limit of health.max_bad_iterations; "
                f"the last is {iteration}: {what}. {self.folder} lists the tensors and samples. Earlier "
                "checkpoints are unchanged; check the samples, or start a new run with a lower training.learning_rate, "
                "or with bf16 instead of fp16"
            )

    def _file(self, iteration: int) -> Path:
        return self.folder / f"iteration_{iteration:09d}.json"


class _FirstBadTensor:
    """A context in which hooks check all outputs of modules and gradients of parameters.

    Attributes:
        found: the first non-finite tensor, as its position among those checked and its name; None if all are finite.
    """

    def __init__(self, module: nn.Module) -> None:
        self.found: tuple[int, str] | None = None
        self._module = module
        self._seen = 0
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        for name, module in self._module.named_modules():
            self._hooks.append(module.register_forward_hook(self._look_at_output(name or "the model")))
        for name, parameter in self._module.named_parameters():
            self._hooks.append(parameter.register_hook(self._look_at_gradient(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _look_at_output(self, name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in output if isinstance(output, tuple) else (output,):
                self._look(tensor, f"the output of {name}")

        return look

    def _look_at_gradient(self, name: str) -> Callable[[Tensor], None]:
        return lambda gradient: self._look(gradient, f"the gradient of {name}")

    def _look(self, tensor: Any, name: str) -> None:
        if not isinstance(tensor, Tensor):
            return
        self._seen += 1
        if self.found is None and not torch.isfinite(tensor).all():
            self.found = self._seen, f"{name} on rank {distributed.rank()}"
