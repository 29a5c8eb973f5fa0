"""The plan of a run, or of the rest of one: all about its costs that can be known in advance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.config.config import Config
from growclip_ds.config.deepspeed import ResolvedDeepSpeed
from growclip_ds.costs.communication import Communication, communication
from growclip_ds.costs.disk import Disk, disk
from growclip_ds.costs.hardware import Hardware
from growclip_ds.costs.memory import Load, Memory, Sharding, memory
from growclip_ds.costs.speed import Speed
from growclip_ds.costs.steps import GrowthSteps, Path, PhaseCost

T = TypeVar("T")

STAGES = (1, 2, 3)
RESERVED = 0.1  # fraction of a GPU's memory that is left to CUDA, NCCL and fragmentation


@dataclass(frozen=True)
class Stage:
    """The needs of a model at one ZeRO stage.

    Attributes:
        stage: the ZeRO stage.
        memory: memory that a rank needs.
        communication: what a rank sends per iteration.
        fits: whether the GPU has enough memory; None if the GPU is not known.
        largest_micro_batch: pairs that fit, at most the rank's share of the batch; 0 if none do, None if the GPU is not
            known.
    """

    stage: int
    memory: Memory
    communication: Communication
    fits: bool | None
    largest_micro_batch: int | None

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "memory_bytes": self.memory.to_json(),
            "communication_bytes": self.communication.to_json(),
            "fits": self.fits,
            "largest_micro_batch": self.largest_micro_batch,
        }


@dataclass(frozen=True)
class CandidateCost:
    """A candidate of a growth step.

    Attributes:
        architecture: the candidate's architecture.
        parameters: number of parameters, without the temperature.
        flops: FLOPs of a forward pass on one pair.
        within_limit: whether it is within `growth.max_parameters`.
    """

    architecture: Architecture
    parameters: int
    flops: float
    within_limit: bool


@dataclass(frozen=True)
class Plan:
    """What a run will cost.

    Attributes:
        config: the run's configuration.
        deepspeed: the run's DeepSpeed configuration: ZeRO stage, precision, micro-batch.
        ranks: number of GPUs.
        hardware: the GPU model; None if not known.
        speed: speed of a GPU and its source; None if not known.
        text_tokens: mean tokens per caption.
        sizes: sizes of the models' input and embedding space.
        samples: number of samples of each subset; None where not counted.
        steps: the growth steps of the run.
        cheapest, dearest: the paths with the fewest and the most FLOPs.
    """

    config: Config
    deepspeed: ResolvedDeepSpeed
    ranks: int
    hardware: Hardware | None
    speed: Speed | None
    text_tokens: float
    sizes: ModelSizes
    samples: tuple[int | None, ...]
    steps: GrowthSteps
    cheapest: Path
    dearest: Path

    @property
    def known_samples(self) -> tuple[int, ...] | None:
        return all_known(self.samples)

    @property
    def models_memory(self) -> bool:
        """Whether memory is modelled, and parameters counted: for GrowCLIPs, not for transformers' CLIP."""
        return not (self.config.has_fixed_model and self.config.fixed_model_is_clip)

    @property
    def offloads(self) -> bool:
        """Whether optimizer or parameters are in host memory."""
        sharding = Sharding.of(self.deepspeed, self.ranks)
        return sharding.offload_optimizer or sharding.offload_parameters

    @property
    def steps_left(self) -> list[int]:
        """Growth steps with remaining phases, the same on both paths."""
        return list(dict.fromkeys(phase.step for phase in self.cheapest.phases))

    @property
    def steps_open(self) -> list[int]:
        """Growth steps that grow the model, to an architecture that is not known yet."""
        first = 2 if not self.config.has_fixed_model else self.steps.count + 1
        return list(range(max(first, len(self.steps.begun.architectures) + 1), self.steps.count + 1))

    def bases(self, step: int) -> list[Architecture]:
        """Architectures that a growth step may start from, on the cheapest and the dearest path."""
        return list(dict.fromkeys(path.architectures[step - 2] for path in (self.cheapest, self.dearest)))

    def candidates(self, base: Architecture) -> list[CandidateCost]:
        """Architectures that a model may grow into in one growth step, the smallest first."""
        limit = self.config.growth.max_parameters
        rows = []
        for architecture in self.steps.all_candidates(base):
            parameters = self.steps.parameters(architecture)
            flops = self.steps.forward(architecture)
            rows.append(CandidateCost(architecture, parameters, flops, limit is None or parameters <= limit))
        return sorted(rows, key=lambda row: (row.parameters, row.architecture))

    def largest_model(self, step: int, path: Path) -> Architecture:
        """The largest model of a growth step on a path: its supernet, if it has one."""
        models = [phase.architecture for phase in path.phases if phase.step == step]
        return max(models, key=self.steps.parameters)

    def stages(self, architecture: Architecture) -> list[Stage]:
        """Memory and communication of a model at each ZeRO stage."""
        return [self._stage(architecture, stage) for stage in STAGES]

    def pairs(self, phase: PhaseCost) -> int | None:
        """Image-text pairs that a phase has yet to train on, over all epochs; None where subsets are not counted."""
        if (of_an_epoch := self._pairs_of_an_epoch(phase)) is None:
            return None
        return max(0, phase.epochs * of_an_epoch - phase.done * self.config.training.global_batch_size)

    def epochs(self, phase: PhaseCost) -> float:
        """Epochs that a phase has yet to train; all of its epochs where subsets are not counted."""
        of_an_epoch, pairs = self._pairs_of_an_epoch(phase), self.pairs(phase)
        return pairs / of_an_epoch if pairs is not None and of_an_epoch else phase.epochs

    def _pairs_of_an_epoch(self, phase: PhaseCost) -> int | None:
        if (samples := self.known_samples) is None:
            return None
        return max(0, sum(samples[: phase.step]) - self.config.held_out_pairs * phase.step)

    def iterations(self, phase: PhaseCost) -> int | None:
        """Iterations that a phase has yet to do; None where subsets are not counted."""
        pairs = self.pairs(phase)
        return None if pairs is None else math.ceil(pairs / self.config.training.global_batch_size)

    def flops(self, *phases: PhaseCost) -> float | None:
        """FLOPs that remain in the phases; None where subsets are not counted."""
        return _total([None if (n := self.pairs(phase)) is None else n * phase.flops for phase in phases])

    def device_hours(self, *phases: PhaseCost) -> float | None:
        """GPU hours that remain in the phases, over all ranks; None if speed or subsets are not known."""
        if self.speed is None or (flops := self.flops(*phases)) is None:
            return None
        return flops / self.speed.flops / 3600

    def hours(self, *phases: PhaseCost) -> float | None:
        """Wall-clock hours that remain in the phases; None if speed or subsets are not known."""
        hours = self.device_hours(*phases)
        return None if hours is None else hours / self.ranks

    def disk(self, path: Path) -> Disk:
        """Disk space that the remaining phases of a path will take."""
        return disk([phase.architecture for phase in path.phases], self.sizes, self.config.checkpoint.keep_last)

    def to_json(self) -> dict[str, Any]:
        limit = self.config.growth.max_parameters
        return {
            "method": self.config.method,
            "ranks": self.ranks,
            "hardware": self.hardware and self.hardware.model_dump(),
            "reserved_share_of_memory": RESERVED,
            "precision": self.deepspeed.precision,
            "stage": self.deepspeed.stage,
            "micro_batch_size": self.deepspeed.micro_batch_size,
            "micro_batches": self.deepspeed.accumulation_steps,
            "global_batch_size": self.config.training.global_batch_size,
            "caption_tokens": self.text_tokens,
            "sizes": asdict(self.sizes),
            "max_parameters": limit,
            "samples": list(self.samples),
            "speed": self.speed and self.speed.to_json(),
            "begun": self._begun_json(),
            "steps": [self._step_json(step) for step in self.steps_left],
            "paths": {"cheapest": self._path_json(self.cheapest), "dearest": self._path_json(self.dearest)},
        }

    def _begun_json(self) -> dict[str, Any] | None:
        begun = self.steps.begun
        return {"from": begun.name, "finished_steps": begun.finished} if begun.name else None

    def _step_json(self, step: int) -> dict[str, Any]:
        values: dict[str, Any] = {"step": step}
        if step in self.steps_open:
            values["candidates"] = [
                {
                    "base": asdict(base),
                    "candidates": [
                        {**asdict(row), "architecture": asdict(row.architecture)} for row in self.candidates(base)
                    ],
                }
                for base in self.bases(step)
            ]
        if self.models_memory:
            values["models"] = {
                name: {
                    "architecture": asdict(model),
                    "parameters": self.steps.parameters(model),
                    "stages": [stage.to_json() for stage in self.stages(model)],
                }
                for name, model in (
                    ("cheapest", self.largest_model(step, self.cheapest)),
                    ("dearest", self.largest_model(step, self.dearest)),
                )
            }
        return values

    def _path_json(self, path: Path) -> dict[str, Any]:
        return {
            "architectures": [asdict(architecture) for architecture in path.architectures],
            "parameters": [self.steps.parameters(one) if self.models_memory else None for one in path.architectures],
            "phases": [self._phase_json(phase) for phase in path.phases],
            "steps": [{"step": step, **self._hours_json(*path.of_step(step))} for step in self.steps_left],
            "disk_bytes": self.disk(path).to_json() if self.models_memory else None,
            **self._hours_json(*path.phases),
        }

    def _phase_json(self, phase: PhaseCost) -> dict[str, Any]:
        values = {**asdict(phase), "architecture": asdict(phase.architecture), "phase": str(phase.phase)}
        values |= {"flops_per_pair": values.pop("flops"), "iterations_done": values.pop("done")}
        values |= {"iterations": self.iterations(phase), "pairs": self.pairs(phase)}
        return values | self._hours_json(phase)

    def _hours_json(self, *phases: PhaseCost) -> dict[str, float | None]:
        return {"device_hours": self.device_hours(*phases), "hours": self.hours(*phases)}

    def _stage(self, architecture: Architecture, stage: int) -> Stage:
        sharding = Sharding.of(self.deepspeed, self.ranks).at_stage(stage)
        load = self.load
        needs = memory(architecture, self.sizes, sharding, load)
        sent = communication(architecture, self.sizes, sharding, load)
        if self.hardware is None:
            return Stage(stage, needs, sent, None, None)
        room = (1 - RESERVED) * self.hardware.memory_bytes
        share = self.config.training.global_batch_size // self.ranks

        def fits(pairs: int) -> bool:
            micro = replace(load, pairs=pairs, micro_batches=math.ceil(share / pairs))
            return memory(architecture, self.sizes, sharding, micro).peak <= room

        # DeepSpeed requires a micro-batch that divides a rank's share of the batch.
        divisors = [pairs for pairs in range(share, 0, -1) if share % pairs == 0]
        largest = next((pairs for pairs in divisors if fits(pairs)), 0)
        return Stage(stage, needs, sent, needs.peak <= room, largest)

    @property
    def load(self) -> Load:
        training = self.config.training
        return Load(
            self.deepspeed.micro_batch_size,
            self.deepspeed.accumulation_steps,
            self.text_tokens,
            training.global_batch_size,
            training.activation_checkpointing,
        )


def all_known(values: Sequence[T | None]) -> tuple[T, ...] | None:
    """Returns the values, or None if one of them is not known."""
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else None


def _total(values: Sequence[float | None]) -> float | None:
    known = all_known(values)
    return None if known is None else sum(known)
