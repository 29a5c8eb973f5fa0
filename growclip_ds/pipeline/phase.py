"""One phase of a growth step on one engine: initial weights in, training, trained weights out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from growclip_ds import distributed
from growclip_ds.architecture import Architecture
from growclip_ds.checkpoint.checkpoint import owners, write_checkpoint
from growclip_ds.data.faults import FaultList, in_words
from growclip_ds.data.remote import Deal
from growclip_ds.data.stream import TrainingStream
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import Phase
from growclip_ds.growth.space import GrowthSpace
from growclip_ds.model.initial import MAX_LOGIT_SCALE
from growclip_ds.model.spec import ModelSpec
from growclip_ds.optim import OPTIMIZERS, SubnetOptimizer
from growclip_ds.pipeline.beginning import find_beginning
from growclip_ds.pipeline.context import RunContext
from growclip_ds.pipeline.counts import PhaseCounts
from growclip_ds.pipeline.evaluator import PhaseEvaluator
from growclip_ds.results import Result
from growclip_ds.run.records import CurvePoint, Training, described
from growclip_ds.seeds import named_seed
from growclip_ds.signals import Stopped
from growclip_ds.training.engine import Engine
from growclip_ds.training.health import Health
from growclip_ds.training.resume import CheckpointKeeper, load_engine
from growclip_ds.training.schedule import learning_rate
from growclip_ds.training.trainer import Trainer
from growclip_kernels.dispatch import uses_triton


class PhaseRun:
    """A running phase; a context manager, which on exit tears the engine down and marks the phase as finished.

    All methods are collective.

    Attributes:
        record: what the phase has done so far, including its earlier starts.

    Args:
        run: the run that the phase belongs to.
        step: the growth step.
        phase: the phase to run.
        spec: the specification of the model to train.
        weights: every parameter's initial value, taken one at a time. Ignored if the phase is resumed.
    """

    def __init__(
        self, run: RunContext, step: int, phase: Phase, spec: ModelSpec, weights: Iterable[tuple[str, Tensor]]
    ) -> None:
        self.config, self.inputs, self.folder, self.monitor = run.config, run.inputs, run.folder, run.monitor
        self.stop, self.watch = run.stop, run.watch
        self.micro_batches = run.deepspeed.accumulation_steps
        self.step = step
        self.phase = phase
        self.spec = spec
        self.data = self.inputs.data.first(step)
        self._stop_if_asked()
        self._start = time.monotonic()
        beginning = find_beginning(run, step, phase, spec, weights)
        self.record, self._is_trained, self._resume = beginning.record, beginning.is_trained, beginning.resume
        build = partial(spec.build, self.config.training.activation_checkpointing)
        self.engine = Engine(build, self._make_optimizer, run.deepspeed.config)
        self.engine.load_masters(beginning.weights)
        if beginning.checkpoint is not None:
            load_engine(self.engine, beginning.checkpoint)
            beginning.checkpoint.close()
        self._evaluator = PhaseEvaluator(self.config, self.inputs, step, self.engine, self._stop_if_asked)

    def train(self, epochs: int, space: GrowthSpace | None = None) -> None:
        """Trains on the growth step's data and writes the weights to the run folder.

        Args:
            epochs: passes over the data.
            space: if given, each iteration trains a subnet sampled from it (Eq. 6) instead of the whole model.
        """
        first, iterations = self.record.first_iteration, self.record.iterations
        if self._is_trained:
            self.monitor.start_phase(self.step, self.phase, self.spec, iterations, first, done=iterations)
            self._end_curve()
            return
        stream = self._stream(epochs)
        health = Health(self.config.health, self.folder.bad_iterations(self.step, self.phase), self.monitor.note)
        training = self._training(epochs)
        before, max_broken_share = self.record.training or training, self.config.data.max_broken_share
        counts = PhaseCounts(stream, health, max_broken_share, before, self._resume)
        done = stream.start_iteration
        self.monitor.start_phase(self.step, self.phase, self.spec, stream.iterations, first, done)
        self.monitor.left_out(self.step, self.data.left_out)

        def count() -> None:
            self.record = replace(self.record, training=counts.added_to(training))
            self._count_seconds()

        def describe() -> dict[str, Any]:
            self.folder.require_there()
            count()
            state = {"iterations": stream.iterations, "deals": stream.deals}
            return self.spec.describe() | described(self.record) | {"resume": state | counts.state}

        place = self.folder.checkpoints(self.step, self.phase)
        keeper = CheckpointKeeper(place, self.config.checkpoint, self.engine, self.spec.shapes, describe, self.monitor)
        trainer = Trainer(
            engine=self.engine,
            stream=stream,
            limit=counts.limit,
            health=health,
            keeper=keeper,
            stop=self.stop,
            watch=self.watch,
            report=self.monitor.progress,
            report_every=self.config.monitoring.log_every,
            evaluate=self._evaluate_in_between,
            evaluate_after=self._evaluator.evaluation_iterations(stream, epochs),
            seen=counts.seen,
        )
        if done in trainer.evaluate_after:
            self._evaluate_in_between(done)  # the run was stopped before this evaluation
        trainer.run(self._rate(stream.iterations), partial(self._subnet, space))
        self.watch.reached("")
        self.record = replace(self.record, iterations=stream.iterations)
        count()
        self._note_lost_data(counts)
        self._write_weights()
        self._stop_if_asked()
        self._end_curve()

    def evaluate(self) -> None:
        """Evaluates the trained model on every reported evaluation set."""
        results = self._evaluator.evaluate()
        self.record = replace(self.record, evaluation=results)
        if self.config.evaluation.every_epochs is not None:
            self._add_to_curve(self.record.iterations, results)
        self.monitor.evaluation(self.step, results)

    def select(self, space: GrowthSpace) -> None:
        """Evaluates every candidate with the trained supernet's weights and records them, best by Eq. 7 first."""
        selection_set, candidates = self._evaluator.select(space)
        self.record = replace(self.record, selection_set=selection_set, candidates=candidates)
        self.monitor.selection(self.step, candidates)

    def _evaluate_in_between(self, iteration: int) -> None:
        """Evaluates the model after an iteration, unless an earlier start of the phase has done so."""
        if all(point.iteration != iteration for point in self.record.curve):
            self._add_to_curve(iteration, self._evaluator.evaluate())

    def _add_to_curve(self, iteration: int, results: Sequence[Result]) -> None:
        self.record = replace(self.record, curve=(*self.record.curve, CurvePoint(iteration, results)))
        self.monitor.curve(iteration, results)

    def _end_curve(self) -> None:
        """Evaluates a supernet at the end of its phase if curves are wanted; a trained model is evaluated anyway."""
        if self.phase is not Phase.TRAIN and self.config.evaluation.every_epochs is not None:
            self._evaluate_in_between(self.record.iterations)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            return  # the process ends: other ranks may be anywhere, so nothing collective is possible
        self.engine.destroy()
        del self.engine, self._evaluator
        self._count_seconds()
        self.folder.finish(self.record)

    def _stop_if_asked(self) -> None:
        """Stops the run, if some rank was asked to, at a point where no work is lost. Collective."""
        if any(distributed.all_gather_object(self.stop.requested)):
            raise Stopped

    def _stream(self, epochs: int) -> TrainingStream:
        resume = self._resume
        stream = TrainingStream(
            self.data.train,
            self.inputs.tokenizer,
            image_size=self.inputs.sizes.image_size,
            global_batch_size=self.config.training.global_batch_size,
            epochs=epochs,
            seed=self._seed("order"),
            micro_batches=self.micro_batches,
            workers=self.config.data.workers,
            start_iteration=resume.get("iteration", 0),
            deals=[Deal(*deal) for deal in resume.get("deals", ())],
            pin_memory=self.engine.device.type == "cuda",
            exact=self.config.data.decoding == "exact",
            fault_list=FaultList(self.folder.faults(f"rank_{distributed.rank()}"), step=self.step, phase=self.phase),
        )
        if resume.get("iterations", stream.iterations) != stream.iterations:
            raise InputError(
                f"the {self.phase} phase of growth step {self.step} has {stream.iterations} iterations, but had "
                f"{resume['iterations']} when it was interrupted: its data have changed; bring them back, or remove "
                f"{self.folder.checkpoints(self.step, self.phase)} to run the phase again"
            )
        return stream

    def _rate(self, iterations: int) -> Callable[[int], float]:
        """The learning rate by iteration of a phase of so many."""
        training = self.config.training
        return partial(
            learning_rate,
            iterations=iterations,
            peak=training.learning_rate,
            warmup_iterations=training.warmup_iterations,
        )

    def _subnet(self, space: GrowthSpace | None, iteration: int) -> Architecture | None:
        """The subnet that an iteration trains; None for the whole model."""
        if space is None:
            return None
        return space.sample(torch.Generator().manual_seed(self._seed(f"subnet {iteration}")))

    def _note_lost_data(self, counts: PhaseCounts) -> None:
        """Tells the user of samples and workers that the phase has lost."""
        if broken := counts.limit.broken:
            self.monitor.note(f"broken samples: {in_words(broken)}; {self.folder.faults('rank_*')} list them")
        if self.record.training is not None and (dead := self.record.training.dead_workers):
            self.monitor.note(f"data loading workers that died and were replaced: {dead}")

    def _training(self, epochs: int) -> Training:
        device = self.engine.device
        return Training(
            epochs=epochs,
            ranks=distributed.world_size(),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            kernels=kernels_of(self.spec, device),
        )

    def _count_seconds(self) -> None:
        now = time.monotonic()
        passed = now - self._start
        on_all = passed * distributed.world_size()  # counted now: a resumed phase may have other ranks
        seconds, device_seconds = self.record.seconds + passed, self.record.device_seconds + on_all
        self.record = replace(self.record, seconds=seconds, device_seconds=device_seconds)
        self._start = now

    def _write_weights(self) -> None:
        shapes = self.spec.shapes
        owner = owners(shapes, distributed.world_size()).__getitem__
        self.folder.require_there()
        write_checkpoint(
            self.folder.weights(self.step, self.phase),
            self.engine.masters(owner),
            shapes,
            owner,
            self.spec.describe() | described(self.record),
        )
        self.folder.remove_checkpoints(self.step, self.phase)

    def _make_optimizer(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> SubnetOptimizer:
        training = self.config.training
        return OPTIMIZERS[training.optimizer](
            [parameter for _, parameter in parameters],
            lr=training.learning_rate,
            betas=training.betas,
            eps=training.eps,
            weight_decay=training.weight_decay,
            upper_bounds={"logit_scale": MAX_LOGIT_SCALE},
        )

    def _seed(self, purpose: str) -> int:
        return named_seed(self.config.seed, self.step, self.phase, purpose)


def kernels_of(spec: ModelSpec, device: torch.device) -> str:
    """Which kernels train a model; `transformers`' CLIP brings its own attention."""
    if not uses_triton(device):
        return "torch"
    return "triton and transformers'" if spec.kind == "clip" else "triton"
