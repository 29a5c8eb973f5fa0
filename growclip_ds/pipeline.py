"""The growth pipeline (Section 3.4): each growth step as phases, weights in, weights out.

Nothing but weights passes from phase to phase, through the run folder, so a run goes on with its first unfinished
phase whenever and wherever it is started again, and within that from its newest checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from growclip_ds.architecture import Architecture
from growclip_ds.checkpoint import Checkpoint
from growclip_ds.config import Config
from growclip_ds.data.faults import in_words
from growclip_ds.deepspeed_config import ResolvedDeepSpeed
from growclip_ds.distributed import on_every_rank
from growclip_ds.errors import InputError
from growclip_ds.growth_space import GrowthSpace
from growclip_ds.inheritance import Momentum, inherited_tensors
from growclip_ds.model.initial import initial_tensor
from growclip_ds.monitor import open_monitor
from growclip_ds.phase import PhaseRun, Run
from growclip_ds.prepare import list_left_out, prepare
from growclip_ds.ranks_watch import RanksWatch
from growclip_ds.run_folder import Phase, open_run
from growclip_ds.signals import StopRequest

Weights = Iterator[tuple[str, Tensor]]


def prepare_growth(
    config: Config,
    deepspeed: ResolvedDeepSpeed,
    output_dir: Path,
    growth_step: int | None = None,
    stop: StopRequest | None = None,
    watch: RanksWatch | None = None,
) -> GrowthPipeline:
    """Opens the run and all that it reads, so that whatever of it cannot be used shows before any training. Collective.

    Args:
        config: of the run.
        deepspeed: how to build engines.
        output_dir: the run's folder, new or of a run to go on with.
        growth_step: the only growth step to run; all of them if None.
        stop: whether this rank was asked to stop; it never is if None.
        watch: over the ranks; none is kept if None.

    Raises:
        InputError: on every rank alike.
    """
    steps = range(1, config.num_growth_steps + 1)
    if growth_step is not None:
        if growth_step not in steps:
            raise InputError(f"--growth-step {growth_step}: the run has growth steps 1 to {len(steps)}")
        steps = range(growth_step, growth_step + 1)
    folder = open_run(output_dir, config)
    folder.require_step_before(steps.start)
    inputs = prepare(config, folder, last_step=steps[-1])
    folder.write_config(config)  # not before its data was seen to be there
    least, limit = inputs.sizes.parameters_of(config.model.base), config.growth.max_parameters
    if limit is not None and limit < least:
        raise InputError(f"growth.max_parameters is {limit:,}, but model.base has {least:,} already; raise the limit")
    samples = [inputs.samples(step) for step in range(1, steps.stop)]
    monitor = open_monitor(folder, config, inputs.sizes, samples)
    if left_out := inputs.data.left_out:
        list_left_out(inputs.data, folder)
        monitor.note(f"left out of the data: {in_words(left_out)}; {folder.faults('index')} lists them")
    if elsewhere := inputs.data.indexes_elsewhere():
        monitor.note(f"the index of {elsewhere:,} shards is in the user's cache, as their folders cannot be written")
    if changes := folder.keep_numerics(deepspeed.numerics):
        monitor.note(f"the DeepSpeed file has changed; the run goes on with it: {'; '.join(changes)}")
    run = Run(config, deepspeed, folder, inputs, monitor, stop or StopRequest(), watch or RanksWatch())
    return GrowthPipeline(run, steps)


class GrowthPipeline:
    """Runs growth steps.

    Args:
        run: that they belong to.
        steps: the growth steps to run.
    """

    def __init__(self, run: Run, steps: range) -> None:
        self._run = run
        self.config, self.folder, self.monitor = run.config, run.folder, run.monitor
        self.sizes = run.inputs.sizes
        self.steps = steps
        growth = self.config.growth
        fresh = 1.0 if growth.fresh_weights == "full" else growth.gamma
        self.momentum = Momentum(growth.beta, growth.gamma, fresh, growth.blend_vectors)

    def run(self) -> None:
        """Runs the unfinished phases of the growth steps, in order.

        Raises:
            Stopped: on every rank, if some rank was asked to stop; started again, the run goes on.
        """
        try:
            with contextlib.closing(self.monitor):
                self._run_phases()
                self.monitor.finish()
        except OSError as error:  # perhaps of the curves, which other threads write
            self.folder.explain(error)
            raise

    def _run_phases(self) -> None:
        phases = {
            Phase.FINETUNE: self.finetune_supernet,
            Phase.SELECTION: self.select_architecture,
            Phase.TRAIN: self.train_selected,
        }
        while (place := self.folder.first_unfinished(self.steps)) is not None:
            step, phase = place
            if step == 1:
                self.train_base()
            else:
                phases[phase](step)

    def train_base(self) -> None:
        """Growth step 1: the base model from scratch."""
        base = self.config.model.base
        seed = self._seed(1, Phase.TRAIN)
        shapes = base.parameter_shapes(self.sizes)
        weights = ((name, initial_tensor(name, shape, base, seed)) for name, shape in shapes.items())
        with PhaseRun(self._run, 1, Phase.TRAIN, base, weights) as run:
            run.train(self.config.epochs.first)
            run.evaluate()

    def finetune_supernet(self, step: int) -> None:
        """Phase 1: the supernet inherits from the last step's model (Eq. 5) and is trained whole, shortly."""
        old = self._weights(step - 1, Phase.TRAIN)
        supernet = self._growth_space(old.architecture).supernet
        weights = self._inherit(old, old.architecture, supernet, step, Phase.FINETUNE)
        with PhaseRun(self._run, step, Phase.FINETUNE, supernet, weights) as run:
            run.train(self.config.epochs.supernet)

    def select_architecture(self, step: int) -> None:
        """Phase 2: sampled subnets are trained (Eq. 6), every candidate is evaluated, the best by Eq. 7 taken."""
        base = self._weights(step - 1, Phase.TRAIN).architecture
        space = self._growth_space(base)
        supernet = self._weights(step, Phase.FINETUNE)
        weights = ((name, supernet.read(name)) for name in supernet.names)
        with PhaseRun(self._run, step, Phase.SELECTION, supernet.architecture, weights) as run:
            run.train(self.config.epochs.selection, space)
            run.select(space)

    def train_selected(self, step: int) -> None:
        """Phase 3: the selected architecture inherits from its slice of the supernet (Eq. 8) and is trained."""
        chosen = self.folder.selected_architecture(step)
        supernet = self._weights(step, Phase.SELECTION)
        weights = self._inherit(supernet, chosen, chosen, step, Phase.TRAIN)
        with PhaseRun(self._run, step, Phase.TRAIN, chosen, weights) as run:
            run.train(self.config.epochs.selected)
            run.evaluate()

    def _growth_space(self, base: Architecture) -> GrowthSpace:
        growth = self.config.growth
        space = GrowthSpace(base, growth.conv_step, growth.block_step, growth.head_step, growth.frozen)
        if growth.max_parameters is None:
            return space
        return space.within(growth.max_parameters, self.sizes.parameters_of)

    def _inherit(self, old: Checkpoint, part: Architecture, new: Architecture, step: int, phase: Phase) -> Weights:
        """The weights of `new`, inherited from the leading slice `part` of the old weights, a tensor at a time."""
        seed = self._seed(step, phase)
        return inherited_tensors(part, new, self.sizes, old.read, self.momentum, seed)

    def _weights(self, step: int, phase: Phase) -> Checkpoint:
        return on_every_rank(lambda: Checkpoint(self.folder.weights(step, phase)))

    def _seed(self, step: int, phase: Phase) -> str:
        """What random weights are drawn from, together with their names."""
        return f"{self.config.seed}/{step}/{phase}"
