"""The growth pipeline (Section 3.4): growth steps as sequences of phases, each from weights to weights.

Only weights pass from phase to phase, through the run folder, so a restarted run resumes with its first unfinished
phase, from the newest checkpoint of that phase.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from growclip_ds.config.config import Config
from growclip_ds.config.deepspeed import ResolvedDeepSpeed
from growclip_ds.data.faults import in_words
from growclip_ds.distributed.watchdog import Watchdog
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import phase_epochs
from growclip_ds.growth.space import require_base_within_limit
from growclip_ds.monitor import open_monitor
from growclip_ds.pipeline.context import RunContext
from growclip_ds.pipeline.prepare import list_left_out, prepare
from growclip_ds.pipeline.recipes import RECIPES
from growclip_ds.pipeline.start import adopt
from growclip_ds.run.folder import RunFolder
from growclip_ds.run.lock import RunLock
from growclip_ds.run.opening import open_run
from growclip_ds.signals import StopRequest
from growclip_ds.training.memory_errors import memory_explained


def prepare_growth(
    config: Config,
    deepspeed: ResolvedDeepSpeed,
    output_dir: Path,
    growth_step: int | None = None,
    stop: StopRequest | None = None,
    watch: Watchdog | None = None,
) -> GrowthPipeline:
    """Opens the run and all of its inputs, so that unusable ones are reported before any training. Collective.

    Args:
        config: the run's configuration.
        deepspeed: the DeepSpeed settings that engines are built with.
        output_dir: the run's folder; new, or that of a run to resume.
        growth_step: the only growth step to run; None for all.
        stop: whether this rank was asked to stop; None if it never is.
        watch: the watchdog over all ranks; None for no watchdog.

    Raises:
        InputError: on every rank, if the run or one of its inputs cannot be used.
    """
    steps = range(1, config.num_growth_steps + 1)
    if growth_step is not None:
        if growth_step not in steps:
            raise InputError(
                f"--growth-step {growth_step}: the run has growth steps 1 to {len(steps)}, as set by data.subsets or "
                "growth.steps; append a subset, or choose one of these steps"
            )
        steps = range(growth_step, growth_step + 1)
    lock = RunLock(output_dir)  # before anything in the folder is read
    folder = open_run(output_dir, config)
    with folder.errors_explained():
        run, steps = _open_inputs(config, deepspeed, folder, steps, stop or StopRequest(), watch or Watchdog())
    return GrowthPipeline(run, steps, lock)


def _open_inputs(
    config: Config, deepspeed: ResolvedDeepSpeed, folder: RunFolder, steps: range, stop: StopRequest, watch: Watchdog
) -> tuple[RunContext, range]:
    """The context of the growth steps, and the steps to run: those that did not come with `model.start`."""
    if config.model.start is None:
        folder.require_step_before(steps.start)
    inputs = prepare(config, folder, last_step=steps[-1])
    folder.write_config(config)  # only once the data has been found usable
    base, name = config.model.base, "model.base"
    if config.model.start is not None:
        last, base, name = *adopt(config.model.start, folder, inputs), "model.start"
        if last >= config.num_growth_steps:
            raise InputError(
                f"model.start, {config.model.start}, has finished growth step {last}, but the run ends with step "
                f"{config.num_growth_steps}: append the subset of step {last + 1} to data.subsets"
            )
        steps = range(max(last + 1, steps.start), max(last + 1, steps.stop))
        folder.require_step_before(steps.start)
    require_base_within_limit(config, base, inputs.sizes.parameters_of, name)
    monitor = open_monitor(folder, config)
    if left_out := inputs.data.left_out:
        list_left_out(inputs.data, folder)
        monitor.note(f"samples left out of the data: {in_words(left_out)}; {folder.faults('index')} lists them")
    if elsewhere := inputs.data.indexes_elsewhere():
        monitor.note(f"the index of {elsewhere:,} shards is in the user's cache, as their folders are not writable")
    if changes := folder.keep_numerics(deepspeed.numerics):
        monitor.note(f"the DeepSpeed file has changed; the run continues with it: {'; '.join(changes)}")
    return RunContext(config, deepspeed, folder, inputs, monitor, stop, watch), steps


class GrowthPipeline:
    """Runs growth steps.

    Args:
        run: the context of the run.
        steps: the growth steps to run.
        lock: the lock on the run's folder, released after `run`.
    """

    def __init__(self, run: RunContext, steps: range, lock: RunLock) -> None:
        self._lock = lock
        self.folder, self.monitor = run.folder, run.monitor
        self.recipe = RECIPES[run.config.method](run)
        self._less_memory = (
            f"lower training.micro_batch_size (now {run.deepspeed.micro_batch_size:,}) or, if a model was being "
            "evaluated, evaluation.batch_size or selection.batch_size; or set training.activation_checkpointing, or "
            "use a higher ZeRO stage or offloading; growclip plan shows what fits. The same command then resumes from "
            "the last checkpoint"
        )
        self.phases = [(step, phase) for step in steps for phase in phase_epochs(run.config, step)]

    def run(self) -> None:
        """Runs the unfinished phases of the growth steps, in order.

        Raises:
            Stopped: on every rank, if some rank was asked to stop; started again, the run resumes.
        """
        # Around the monitor too: closing it raises the errors of its writer threads.
        with self.folder.errors_explained(), contextlib.closing(self._lock), contextlib.closing(self.monitor):
            self._run_phases()
            self.monitor.finish()

    def _run_phases(self) -> None:
        while (place := self.folder.first_unfinished(self.phases)) is not None:
            with memory_explained("growth step {}, phase {}".format(*place), self._less_memory):
                self.recipe.run(*place)
