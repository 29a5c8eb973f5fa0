"""Monitoring of training: rank 0 writes to TensorBoard and the terminal; the other ranks write nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TextIO

import psutil
import torch

from growclip_ds import distributed
from growclip_ds.architecture import Architecture
from growclip_ds.config.config import Config
from growclip_ds.growth.phases import Phase, phase_epochs
from growclip_ds.growth.selection import Candidate
from growclip_ds.model.spec import ModelSpec, num_parameters
from growclip_ds.monitor.curves import Curves
from growclip_ds.monitor.figures import architecture_figure, selection_figure
from growclip_ds.monitor.progress import Output, PhaseProgress
from growclip_ds.monitor.reports import CheckpointCost, Progress
from growclip_ds.monitor.starvation import StarvationWatch
from growclip_ds.monitor.summary import read_summaries
from growclip_ds.monitor.tables import architecture_markdown, candidates_markdown, print_summary
from growclip_ds.monitor.words import millions
from growclip_ds.results import Result, averaged
from growclip_ds.run.folder import RunFolder

GIB = 2**30
MOST_SETS_IN_A_LINE = 2
PHASE_NUMBERS = {Phase.FINETUNE: 1, Phase.SELECTION: 2, Phase.SEARCH: 2, Phase.TRAIN: 3}  # as in Section 3.4


class Monitor:
    """Interface of a monitor. It does nothing itself: ranks other than 0 use it as it is."""

    def start_phase(
        self,
        step: int,
        phase: Phase,
        spec: ModelSpec,
        iterations: int,
        first_iteration: int,
        done: int = 0,
    ) -> None:
        """A phase starts, or resumes.

        Args:
            step: the growth step.
            phase: the phase of that step.
            spec: what the engine trains: the model or the supernet.
            iterations: iterations of the whole phase.
            first_iteration: iterations of the run before the phase.
            done: iterations of the phase already done, if it resumes from a checkpoint.
        """

    def left_out(self, step: int, counts: Mapping[str, int]) -> None:
        """Reports how many unusable samples the index of a growth step leaves out, by cause."""

    def progress(self, progress: Progress) -> None:
        """An iteration of the phase is done and is reported."""

    def checkpoint(self, cost: CheckpointCost) -> None:
        """A checkpoint within the phase is on disk."""

    def flush(self) -> None:
        """Writes pending events to disk."""

    def selection(self, step: int, candidates: Sequence[Candidate]) -> None:
        """All candidates of a growth step are evaluated, and ranked, best first."""

    def evaluation(self, step: int, results: Sequence[Result]) -> None:
        """The model of a growth step is evaluated."""

    def curve(self, iteration: int, results: Sequence[Result]) -> None:
        """The model of the phase is evaluated during training, after that many iterations of the phase."""

    def note(self, text: str) -> None:
        """There is something that the user should know."""

    def finish(self) -> None:
        """The run, or the requested part of it, is done: prints its summary."""

    def close(self) -> None:
        """Writes pending events to disk and closes the files; also called after an error."""


class RunMonitor(Monitor):
    """The monitor of rank 0.

    Args:
        folder: the run's folder.
        config: the run's configuration.
        stream: where to write progress; None: standard output.
    """

    def __init__(self, folder: RunFolder, config: Config, stream: TextIO | None = None) -> None:
        self.folder = folder
        self.config = config
        self.steps = config.num_growth_steps
        self.workers = config.data.workers
        self.output = Output(stream)
        self.curves = Curves(folder.tensorboard)
        for warning in config.warnings():
            self.output.line(f"Warning: {warning}")

    def start_phase(
        self,
        step: int,
        phase: Phase,
        spec: ModelSpec,
        iterations: int,
        first_iteration: int,
        done: int = 0,
    ) -> None:
        self._step, self._phase, self._first_iteration = step, phase, first_iteration
        self._progress = PhaseProgress(self.output, step, self.steps, phase, done)
        self._starvation = StarvationWatch(self.workers)
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        is_new_step = phase is next(iter(phase_epochs(self.config, step))) and not done
        self.curves.start_phase(step, first_iteration + done, is_new_step)
        if done:
            self.output.line(f"step {step}/{self.steps} {phase}: resumes after iteration {done:,} of {iterations:,}")
            return
        architecture, parameters = spec.architecture, num_parameters(spec)
        kind = "model" if phase is Phase.TRAIN else "supernet"
        name = f"{'CLIP' if spec.kind == 'clip' else kind} {architecture}, {millions(parameters)} parameters"
        before = self._architecture_before(step)
        figures = {f"architecture/{kind}": architecture_figure(architecture, before)} if spec.kind == "growclip" else {}
        self.curves.training(
            first_iteration + 1,
            texts={
                "phase/started": f"growth step {step}, {phase}: {name}",
                f"architecture/{kind}": architecture_markdown(architecture, before, parameters),
            },
            figures=figures,
        )
        if phase is Phase.TRAIN:
            self.curves.growth(step, {"model/parameters": parameters})
        self.output.line(f"step {step}/{self.steps} {phase}: {name}")

    def left_out(self, step: int, counts: Mapping[str, int]) -> None:
        self.curves.growth(step, _by_cause("left_out", counts))

    def progress(self, progress: Progress) -> None:
        self._progress.report(progress)
        if warning := self._starvation.warning(progress):
            self.output.line(f"Warning: {warning}")
        self.curves.training(
            self._first_iteration + progress.iteration,
            {
                "train/loss": progress.loss,
                "train/learning_rate": progress.learning_rate,
                "train/logit_scale": progress.logit_scale,
                "train/gradient_norm": progress.gradient_norm,
                "train/skipped": progress.skipped,
                **({} if progress.loss_scale is None else {"train/loss_scale": progress.loss_scale}),
                "speed/samples_per_second": progress.samples_per_second,
                "speed/data_wait_share": progress.data_wait_share,
                "phase/growth_step": self._step,
                "phase/number": PHASE_NUMBERS[self._phase],
                **_by_cause("broken_samples", progress.broken_samples),
                **_memory(),
            },
        )
        if progress.iteration == progress.iterations:
            self.curves.flush()

    def checkpoint(self, cost: CheckpointCost) -> None:
        self.curves.training(
            self._first_iteration + cost.iteration,
            {
                "checkpoint/seconds_waited": cost.waited,
                "checkpoint/seconds_writing": cost.written,
                "checkpoint/waited_share": cost.share,
            },
        )

    def flush(self) -> None:
        self.curves.flush()

    def selection(self, step: int, candidates: Sequence[Candidate]) -> None:
        best = candidates[0]
        self.output.line(
            f"step {step}/{self.steps} selected {best.architecture} of {len(candidates)}: "
            f"{millions(best.parameters)} parameters, accuracy {best.accuracy:.1f} %, metric {best.metric:.2f}"
        )
        self.curves.growth(
            step,
            {"selection/accuracy": best.accuracy, "selection/metric": best.metric},
            {"selection/candidates": candidates_markdown(candidates)},
            {"selection/candidates": selection_figure(candidates)},
        )
        self.curves.flush()

    def evaluation(self, step: int, results: Sequence[Result]) -> None:
        if not results:
            return
        shown = ", ".join(f"{result.dataset} {result.accuracy:.1f} %" for result in results)
        if len(results) > MOST_SETS_IN_A_LINE:
            shown = f"mean of {len(averaged(results))} sets {_mean(results):.1f} %"
        self.output.line(f"step {step}/{self.steps} zero-shot: {shown}")
        self.curves.growth(step, _accuracies("zero_shot", results))
        self.curves.flush()

    def curve(self, iteration: int, results: Sequence[Result]) -> None:
        # Not under the tags of growth steps: TensorBoard would draw both in one chart, over one axis.
        self.curves.training(self._first_iteration + iteration, _accuracies("zero_shot_in_training", results))

    def note(self, text: str) -> None:
        self.output.line(f"Note: {text}")

    def finish(self) -> None:
        summaries = read_summaries(self.folder)
        self.output.line("")
        print_summary(summaries, self.folder.path, self.output.stream)

    def close(self) -> None:
        self.curves.close()

    def _architecture_before(self, step: int) -> Architecture | None:
        """The architecture that a growth step grows from; None if the step before is not finished."""
        finished = {summary.step: summary.architecture for summary in read_summaries(self.folder)}
        return finished.get(step - 1)


def open_monitor(folder: RunFolder, config: Config, stream: TextIO | None = None) -> Monitor:
    """Returns the monitor of this rank; see `RunMonitor` for the arguments."""
    return RunMonitor(folder, config, stream) if distributed.is_main() else Monitor()


def _accuracies(group: str, results: Sequence[Result]) -> dict[str, float]:
    """The accuracy on each set, and their mean, by tag."""
    accuracies = {f"{group}/{result.dataset}": result.accuracy for result in results}
    return accuracies | {f"{group}/mean": _mean(results)} if results else {}


def _mean(results: Sequence[Result]) -> float:
    return mean(result.accuracy for result in averaged(results))


def _by_cause(tag: str, counts: Mapping[str, int]) -> dict[str, float]:
    return {f"{tag}/{cause.replace(' ', '_')}": count for cause, count in counts.items()}


def _memory() -> dict[str, float]:
    """Memory of this rank in GiB: resident memory, and peak device memory since the phase began."""
    memory = {"memory/resident_gib": psutil.Process().memory_info().rss / GIB}
    if torch.cuda.is_initialized():
        memory["memory/device_gib"] = torch.cuda.max_memory_allocated() / GIB
    return memory
