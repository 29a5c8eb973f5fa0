"""One phase of a growth step on one engine: weights in, training, weights out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from growclip_ds import distributed
from growclip_ds.architecture import Architecture
from growclip_ds.checkpoint.checkpoint import Checkpoint, owners, write_checkpoint
from growclip_ds.config.config import Config
from growclip_ds.config.deepspeed import ResolvedDeepSpeed
from growclip_ds.data.fault_limit import FaultLimit
from growclip_ds.data.faults import FaultList, in_words
from growclip_ds.data.remote import Deal
from growclip_ds.data.stream import TrainingStream
from growclip_ds.distributed import on_every_rank
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import Phase
from growclip_ds.growth.space import GrowthSpace
from growclip_ds.model.initial import MAX_LOGIT_SCALE
from growclip_ds.model.plan import ModelPlan, num_parameters
from growclip_ds.monitor import Monitor
from growclip_ds.optim import AdamW, Lamb, SubnetOptimizer
from growclip_ds.pipeline.counts import PhaseCounts
from growclip_ds.pipeline.judging import Judge
from growclip_ds.pipeline.prepare import RunInputs
from growclip_ds.run.folder import RunFolder
from growclip_ds.run.records import device_seconds
from growclip_ds.seeds import named_seed
from growclip_ds.signals import Stopped, StopRequest
from growclip_ds.training.engine import Engine
from growclip_ds.training.health import Health
from growclip_ds.training.ranks_watch import RanksWatch
from growclip_ds.training.resume import CheckpointKeeper, load_engine, newest_good
from growclip_ds.training.schedule import learning_rate
from growclip_ds.training.trainer import Trainer
from growclip_kernels.dispatch import uses_triton


@dataclass(frozen=True)
class Run:
    """What all phases of a run have in common.

    Attributes:
        config: its configuration.
        deepspeed: how to build engines.
        folder: where it is on disk.
        inputs: the data, the tokenizer and the evaluation sets.
        monitor: told what happens.
        stop: whether this rank was asked to stop.
        watch: over the ranks.
    """

    config: Config
    deepspeed: ResolvedDeepSpeed
    folder: RunFolder
    inputs: RunInputs
    monitor: Monitor
    stop: StopRequest
    watch: RanksWatch


class PhaseRun:
    """A phase while it runs; a context, at whose end the engine is torn down and the phase is marked finished.

    All methods are collective.

    Attributes:
        judge: evaluates its model.

    Args:
        run: that the phase belongs to.
        step: the growth step.
        phase: what is run.
        plan: of the model.
        weights: every parameter's initial value, taken one at a time.
    """

    def __init__(
        self, run: Run, step: int, phase: Phase, plan: ModelPlan, weights: Iterable[tuple[str, Tensor]]
    ) -> None:
        self.config, self.inputs, self.folder, self.monitor = run.config, run.inputs, run.folder, run.monitor
        self.stop, self.watch = run.stop, run.watch
        self.micro_batches = run.deepspeed.accumulation_steps
        self.step = step
        self.phase = phase
        self.plan = plan
        self.data = self.inputs.data.first(step)
        self._stop_if_asked()
        self._start = time.monotonic()
        self.record: dict[str, Any] = {
            "samples": self.inputs.samples(step),
            "parameters": num_parameters(plan),
            "model": {"kind": plan.kind, "architecture": asdict(plan.architecture)},
            "iterations": 0,
            "first_iteration": self.folder.iterations_before(step, phase),
            "seconds": 0.0,
            "device_seconds": 0.0,
            "curve": [],
        }
        self._trained = self.folder.is_trained(step, phase)
        self._checkpoint: Checkpoint | None = None  # to go on from
        if self._trained:  # and interrupted while it was evaluated
            kept = on_every_rank(lambda: Checkpoint(self.folder.weights(step, phase)))
        else:
            kept = self._checkpoint = newest_good(self.folder.checkpoints(step, phase), self.monitor.note)
        if kept is not None:
            before = kept.description["record"]
            self.record |= {**before, "device_seconds": device_seconds(before) or 0.0}
            weights = ((name, kept.read(name)) for name in plan.shapes)
        build = partial(plan.build, self.config.training.activation_checkpointing)
        self.engine = Engine(build, self._make_optimizer, run.deepspeed.config)
        self.engine.load_masters(weights)
        if self._checkpoint is not None:
            load_engine(self.engine, self._checkpoint)
        self.judge = Judge(self.config, self.inputs, self.monitor, step, self.engine, self.record, self._stop_if_asked)

    def train(self, epochs: int, space: GrowthSpace | None = None) -> None:
        """Trains on the step's data: the whole model, or in each iteration a subnet sampled from the space.

        Leaves the weights in the run's folder.
        """
        first, iterations = self.record["first_iteration"], self.record["iterations"]
        if self._trained:
            self.monitor.start_phase(self.step, self.phase, self.plan, iterations, first + iterations)
            self._end_curve()
            return
        resume = {} if self._checkpoint is None else self._checkpoint.description["resume"]
        stream = self._stream(epochs, resume)
        limit = FaultLimit(stream.samples, self.config.data.max_broken_share, resume.get("samples_read", 0))
        health = Health(self.config.health, self.folder.bad_iterations(self.step, self.phase), self.monitor.note)
        if resume:
            health.state = resume["health"]
        counts = PhaseCounts(self.record, stream, health)
        peak, warmup = self.config.training.learning_rate, self.config.training.warmup_iterations
        rate = partial(learning_rate, iterations=stream.iterations, peak=peak, warmup_iterations=warmup)
        done = stream.start_iteration
        self.monitor.start_phase(self.step, self.phase, self.plan, stream.iterations, first, done)
        self.monitor.left_out(self.step, self.data.left_out)
        self.record |= {
            "epochs": epochs,
            "ranks": distributed.world_size(),
            "device": torch.cuda.get_device_name(self.engine.device) if self.engine.device.type == "cuda" else "CPU",
            "kernels": kernels_of(self.plan, self.engine.device),
        }

        def subnet(iteration: int) -> Architecture | None:
            if space is None:
                return None
            return space.sample(torch.Generator().manual_seed(self._seed(f"subnet {iteration}")))

        def describe() -> dict[str, Any]:
            self.folder.require_there()
            counts.update()
            self._count_seconds()
            state = {
                "iterations": stream.iterations,
                "samples_read": limit.read,
                "health": health.state,
                "deals": stream.deals,
            }
            return self._description(resume=state)

        place = self.folder.checkpoints(self.step, self.phase)
        keeper = CheckpointKeeper(place, self.config.checkpoint, self.engine, self.plan.shapes, describe, self.monitor)
        trainer = Trainer(
            engine=self.engine,
            stream=stream,
            limit=limit,
            health=health,
            keeper=keeper,
            stop=self.stop,
            watch=self.watch,
            report=self.monitor.progress,
            report_every=self.config.monitoring.log_every,
            evaluate=self.judge.evaluate_in_between,
            evaluate_after=self.judge.iterations(stream, epochs),
            seen=counts.seen,
        )
        if done in trainer.evaluate_after:
            self.judge.evaluate_in_between(done)  # stopped before that
        trainer.run(rate, subnet)
        self.watch.reached("")
        self.record["iterations"] = stream.iterations
        counts.update()
        self._count_seconds()
        if limit.broken:
            self.monitor.note(f"broken samples: {in_words(limit.broken)}; {self.folder.faults('rank_*')} list them")
        if self.record["dead_workers"]:
            self.monitor.note(f"data loading workers that died and were replaced: {self.record['dead_workers']}")
        self._write_weights()
        self._stop_if_asked()
        self._end_curve()

    def _end_curve(self) -> None:
        """Evaluates the supernet that a phase leaves, where its course is evaluated; a model is evaluated anyway."""
        if self.phase is not Phase.TRAIN and self.config.evaluation.every_epochs is not None:
            self.judge.evaluate_in_between(self.record["iterations"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            return  # the process ends: other ranks may be anywhere, so nothing collective may be done
        self.engine.destroy()
        del self.engine, self.judge
        self._count_seconds()
        self.folder.finish(self.step, self.phase, self.record)

    def _stop_if_asked(self) -> None:
        """Ends the run where nothing would be lost by it. Collective."""
        if any(distributed.all_gather_object(self.stop.requested)):
            raise Stopped

    def _stream(self, epochs: int, resume: Mapping[str, Any]) -> TrainingStream:
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
                f"{self.folder.checkpoints(self.step, self.phase)} to run the phase anew"
            )
        return stream

    def _description(self, **more: Any) -> dict[str, Any]:
        return self.plan.describe() | {
            "growth_step": self.step,
            "phase": str(self.phase),
            "record": self.record,
            **more,
        }

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.record["seconds"] += now - self._start
        self.record["device_seconds"] += (now - self._start) * distributed.world_size()  # it may go on with other ranks
        self._start = now

    def _write_weights(self) -> None:
        shapes = self.plan.shapes
        owner = owners(shapes, distributed.world_size()).__getitem__
        self.folder.require_there()
        write_checkpoint(
            self.folder.weights(self.step, self.phase),
            self.engine.masters(owner),
            shapes,
            owner,
            self._description(),
        )
        self.folder.remove_checkpoints(self.step, self.phase)

    def _make_optimizer(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> SubnetOptimizer:
        training = self.config.training
        make = {"lamb": Lamb, "adamw": AdamW}[training.optimizer]
        return make(
            [parameter for _, parameter in parameters],
            lr=training.learning_rate,
            betas=training.betas,
            eps=training.eps,
            weight_decay=training.weight_decay,
            upper_bounds={"logit_scale": MAX_LOGIT_SCALE},
        )

    def _seed(self, purpose: str) -> int:
        return named_seed(self.config.seed, self.step, self.phase, purpose)


def kernels_of(plan: ModelPlan, device: torch.device) -> str:
    """Which kernels a model is trained by; the attention of `transformers`' CLIP is its own."""
    if not uses_triton(device):
        return "torch"
    return "triton and transformers'" if plan.kind == "clip" else "triton"
