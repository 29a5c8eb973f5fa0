"""Training steps of GrowCLIP and of its contenders on the same batch: built, checked, timed, torn down."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.captions import built_in_captions, built_in_tokenizer, fill, pad
from benchmarks.contenders import Contender
from benchmarks.parts import TimedEngine, median_shares
from benchmarks.presets import Preset
from growclip_ds import distributed
from growclip_ds.architecture import Architecture
from growclip_ds.config.config import load_config
from growclip_ds.config.deepspeed import DeepSpeedFile, load_deepspeed_config, resolve
from growclip_ds.costs.flops import clip_forward_flops, forward_flops, training_flops
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.model.initial import MAX_LOGIT_SCALE, initial_tensor
from growclip_ds.model.packed import PackedTokens
from growclip_ds.optim import AdamW, SubnetOptimizer
from growclip_ds.training.iteration import train_iteration

WARM_UP = 3  # iterations before those that are timed
SHARES = 3  # iterations with marks between parts
PARTS = {"image encoder": "image", "text encoder": "text", "shared encoder": "shared"}
LEARNING_RATE = 1e-4  # large enough to change every fp32 weight
WEIGHT_DECAY = 0.2
GUESSING = 0.25  # by which part of ln n the first loss may differ from it

Step = Callable[[], float]  # an iteration, which returns the loss
Masters = Callable[[Callable[[str], int]], Iterator[tuple[str, Tensor | None]]]  # as `Engine.masters`


class Batch:
    """A rank's pairs, on its device: random pictures, and as many of the built-in captions.

    Attributes:
        images: (n, 3, S, S) in the working precision.
        packed: the captions end to end.
        full: as many captions, all of full length.
        rows: (n, length): `packed` as padded rows.
        lengths: of the captions in `packed`.
        end_of_text: the token that ends them.
    """

    def __init__(self, preset: Preset, device: torch.device) -> None:
        n, sizes = preset.batch_size, preset.sizes
        tokenizer = built_in_tokenizer(sizes.vocab_size, sizes.context_length)
        text = tokenizer(built_in_captions(n, distributed.rank()))
        generator = torch.Generator().manual_seed(distributed.rank())
        images = torch.randn(n, 3, sizes.image_size, sizes.image_size, generator=generator)
        self.images = images.to(device, torch.bfloat16 if preset.bf16 else torch.float32)
        self.packed = text.to(device)
        self.full = fill(text, sizes.context_length, tokenizer.vocab_size).to(device)
        self.rows = pad(text, sizes.context_length).to(device)
        self.lengths: list[int] = text.cu_seqlens.diff().tolist()
        self.end_of_text = tokenizer.end_of_text


class Contest:
    """What is the same for all that is timed, and the rows of figures.

    Args:
        preset: what is run.
        device: where.
    """

    def __init__(self, preset: Preset, device: torch.device) -> None:
        self.preset, self.device, self.sizes = preset, device, preset.sizes
        self.ranks = distributed.world_size()
        self.batch = Batch(preset, device)
        self.ceilings = common.ceilings(device)
        self.rows: list[dict[str, Any]] = []

    def growclip(
        self,
        name: str,
        architecture: Architecture,
        optimizer: type[SubnetOptimizer],
        stage: int,
        full_captions: bool,
        profile: Callable[[Step], None] | None,
    ) -> None:
        """GrowCLIP as it is trained.

        Args:
            name: of its size.
            architecture: its sizes.
            optimizer: AdamW or Lamb.
            stage: of ZeRO.
            full_captions: whether to time it with captions of full length too.
            profile: what to do with a step on packed captions, when it has been timed.
        """
        initial = self.initial(architecture)
        memory = common.PeakMemory(self.device)
        engine = self.engine(architecture, optimizer, stage)
        engine.load_masters(initial.items())

        def step_on(text: PackedTokens) -> Step:
            micro_batches, counts = [(self.batch.images, text)], [self.preset.batch_size] * self.ranks
            return lambda: train_iteration(engine, micro_batches, LEARNING_RATE, counts=counts).loss

        row = {"model": f"GrowCLIP, {name}", "trained_by": f"ZeRO {stage}, {optimizer.__name__}", "stage": stage}
        row |= {"architecture": str(architecture)}
        contrasted_with = self.preset.batch_size * self.ranks
        step = step_on(self.batch.packed)
        check_first_step(step, contrasted_with, engine.masters, initial)
        flops = sum(forward_flops(architecture, self.sizes, length) for length in self.batch.lengths)
        self._record(row | {"captions": "packed"}, step, memory, flops, contrasted_with, engine, PARTS)
        if profile is not None:
            profile(step)
        if full_captions:
            length = self.sizes.context_length
            flops = self.preset.batch_size * forward_flops(architecture, self.sizes, length)
            row |= {"captions": f"all of {length}"}
            self._record(row, step_on(self.batch.full), memory, flops, contrasted_with, engine, PARTS)
        engine.destroy()

    def initial(self, architecture: Architecture) -> dict[str, Tensor]:
        """GrowCLIP's weights before the first step, in fp32 in main memory."""
        shapes = architecture.parameter_shapes(self.sizes)
        return {name: initial_tensor(name, shape, architecture, 0) for name, shape in shapes.items()}

    def engine(self, architecture: Architecture, optimizer: type[SubnetOptimizer], stage: int) -> TimedEngine:
        """GrowCLIP's engine at a stage of ZeRO, without values for its weights."""
        bounds = {"logit_scale": MAX_LOGIT_SCALE}
        return TimedEngine(
            lambda: GrowCLIP(architecture, **asdict(self.sizes), initialise=False),
            lambda named: optimizer([p for _, p in named], weight_decay=WEIGHT_DECAY, upper_bounds=bounds),
            self._ds_config(stage),
        )

    def contender_on_engine(self, contender: Contender, stage: int) -> None:
        """Another library's CLIP, trained as GrowCLIP is."""
        prototype = contender.build()  # not in the engine: ZeRO 3 cannot take over scalars while they are made
        initial = {name: parameter.detach() for name, parameter in prototype.named_parameters()}
        memory = common.PeakMemory(self.device)
        engine = TimedEngine(
            lambda: copy.deepcopy(prototype),
            lambda named: AdamW([p for _, p in named], weight_decay=WEIGHT_DECAY),
            self._ds_config(stage),
        )
        engine.load_masters(initial.items())

        def step() -> float:
            loss = engine(self.batch.images, self.batch.rows)
            engine.backward(loss)
            engine.step(LEARNING_RATE)
            _ = engine.gradient_norm  # read every iteration, as GrowCLIP's is
            return loss.item()

        check_first_step(step, self.preset.batch_size, engine.masters, initial)
        row = {"model": contender.name, "captions": "padded", "trained_by": f"ZeRO {stage}, AdamW", "stage": stage}
        self._record(row, step, memory, self._contender_flops, self.preset.batch_size, engine, contender.parts)
        engine.destroy()

    def contender_alone(self, contender: Contender) -> None:
        """Another library's CLIP in plain PyTorch: fp32 weights, autocast, the fused AdamW."""
        prototype = contender.build()
        initial = {name: parameter.detach() for name, parameter in prototype.named_parameters()}
        memory = common.PeakMemory(self.device)
        module = copy.deepcopy(prototype).to(self.device)
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), eps=1e-6, weight_decay=WEIGHT_DECAY, fused=True
        )
        images = self.batch.images.float()

        def step() -> float:
            with torch.autocast(self.device.type, torch.bfloat16) if self.preset.bf16 else nullcontext():
                loss = module(images, self.batch.rows)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

        def weights(_: Callable[[str], int]) -> Iterator[tuple[str, Tensor]]:
            return ((name, parameter.detach().cpu()) for name, parameter in module.named_parameters())

        check_first_step(step, self.preset.batch_size, weights, initial)
        row = {"model": contender.name, "captions": "padded", "trained_by": "PyTorch, AdamW", "stage": None}
        self._record(row, step, memory, self._contender_flops, self.preset.batch_size)

    def _record(
        self,
        row: dict[str, Any],
        step: Step,
        memory: common.PeakMemory,
        forward: float,
        contrasted_with: int,
        engine: TimedEngine | None = None,
        parts: Mapping[str, str] | None = None,
    ) -> None:
        """Times the steps of one contestant and keeps its row.

        Args:
            row: who it is.
            step: an iteration.
            memory: made before the contestant was.
            forward: operations of this rank's forward pass, padding not counted.
            contrasted_with: captions that each picture is compared with.
            engine: what it is trained by, if that can time parts.
            parts: which.
        """
        for _ in range(WARM_UP):
            step()
        memory.restart()
        seconds = common.iteration_seconds(step, self.preset.iterations, self.device)
        peak = memory.bytes
        if engine is not None and parts is not None:
            with engine.timed(parts) as run:
                row |= {"shares": median_shares([run(step) for _ in range(SHARES)])}
        measured = distributed.all_gather_object((seconds, peak))
        seconds = [max(durations) for durations in zip(*(s for s, _ in measured), strict=True)]
        median, peak = statistics.median(seconds), max(p for _, p in measured)
        pairs = self.preset.batch_size
        similarities = training_flops(2 * pairs * contrasted_with * self.sizes.embed_dim)
        rate = (training_flops(forward) + similarities) / median / 1e12
        sheet = self.ceilings["peak_tflop_s"]
        row |= {
            "ranks": self.ranks,
            "batch_size": pairs * self.ranks,
            "samples_per_second": pairs * self.ranks / median,
            "ms": 1000 * median,
            "ms_range": [1000 * min(seconds), 1000 * max(seconds)],
            "tflop_s": rate,
            "mfu": rate / sheet if sheet and self.preset.bf16 else None,
            "of_measured_rate": rate / self.ceilings["matmul_tflop_s"],
            "peak_gib": peak / 2**30,
        }
        self.rows.append(row)
        if distributed.is_main():
            who = f"{row['model']}, {row['captions']} captions, {row['trained_by']}"
            print(f"{who}: {row['samples_per_second']:,.1f} samples/s", flush=True)

    @property
    def _contender_flops(self) -> float:
        return sum(clip_forward_flops(self.preset.compared, self.sizes, length) for length in self.batch.lengths)

    def _ds_config(self, stage: int) -> dict[str, Any]:
        """ds_configs/zeroN.json for this batch; in fp32 where the preset is, and on the CPU without a second stream."""
        file = load_deepspeed_config(common.ROOT / "ds_configs" / f"zero{stage}.json")
        values = dict(file.values)
        if not self.preset.bf16:
            values = {key: value for key, value in values.items() if key not in ("bf16", "data_types")}
        if self.device.type == "cpu":
            values["zero_optimization"] = {**values["zero_optimization"], "overlap_comm": False}
        batch_size = f"training.global_batch_size={self.preset.batch_size * self.ranks}"
        config = load_config(common.ROOT / "configs" / "cc12m.yaml", [batch_size])
        return resolve(DeepSpeedFile(file.path, values), config, self.ranks).config


def of_ranks(name: str) -> str:
    """A benchmark's name among results: runs of several ranks have files of their own."""
    ranks = distributed.world_size()
    return name if ranks == 1 else f"{name}_{ranks}_ranks"


def check_first_step(step: Step, contrasted_with: int, masters: Masters, initial: Mapping[str, Tensor]) -> None:
    """Takes the first step, whose loss has to be that of guessing and which has to change every matrix.

    Args:
        step: an iteration.
        contrasted_with: captions that each picture is compared with.
        masters: gives the fp32 weights.
        initial: what they were.

    Raises:
        RuntimeError: the loss is another, or a matrix is as it was.
    """
    loss, guessing = step(), math.log(contrasted_with)
    if not abs(loss - guessing) < GUESSING * guessing:
        raise RuntimeError(f"the first loss is {loss}, far from {guessing:.3f}, guessing among {contrasted_with}")
    for name, tensor in masters(lambda _: 0):
        if tensor is not None and tensor.dim() > 1 and torch.equal(tensor, initial[name]):
            raise RuntimeError(f"a training step left {name} as it was")
