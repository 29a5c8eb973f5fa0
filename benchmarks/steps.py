"""Builds, checks and times training steps of GrowCLIP and of its contenders on the same batch."""

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

WARM_UP = 3  # iterations before the timed ones
SHARES = 3  # iterations timed by part
PARTS = {"image encoder": "image", "text encoder": "text", "shared encoder": "shared"}
LEARNING_RATE = 1e-4  # large enough to change every fp32 weight
WEIGHT_DECAY = 0.2
GUESSING = 0.25  # largest relative difference of the first loss from ln n

Step = Callable[[], float]  # an iteration, which returns the loss
Masters = Callable[[Callable[[str], int]], Iterator[tuple[str, Tensor | None]]]  # as `Engine.masters`


class Batch:
    """A rank's batch on its device: random images, and as many captions of the built-in data.

    Attributes:
        images: (n, 3, S, S) in the preset's precision.
        packed: the captions, packed.
        full: the same number of captions, packed, all of full length.
        rows: (n, length), `packed` as padded rows.
        lengths: lengths of the captions in `packed`.
        end_of_text: id of the token that ends them.
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
    """The batch and settings that all contestants share, and the rows of their figures.

    Args:
        preset: models, batch and precision.
        device: the device to run on.
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
        """Times GrowCLIP, trained as in a run.

        Args:
            name: name of its size.
            architecture: its architecture.
            optimizer: AdamW or Lamb.
            stage: the ZeRO stage.
            full_captions: whether to time it also with captions of full length.
            profile: called with the step on packed captions after that has been timed; None for no profile.
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
        """GrowCLIP's initial weights by name, in fp32 on the CPU."""
        shapes = architecture.parameter_shapes(self.sizes)
        return {name: initial_tensor(name, shape, architecture, 0) for name, shape in shapes.items()}

    def engine(self, architecture: Architecture, optimizer: type[SubnetOptimizer], stage: int) -> TimedEngine:
        """GrowCLIP's engine at a ZeRO stage, with uninitialised weights."""
        bounds = {"logit_scale": MAX_LOGIT_SCALE}
        return TimedEngine(
            lambda: GrowCLIP(architecture, **asdict(self.sizes), initialise=False),
            lambda named: optimizer([p for _, p in named], weight_decay=WEIGHT_DECAY, upper_bounds=bounds),
            self._ds_config(stage),
        )

    def contender_on_engine(self, contender: Contender, stage: int) -> None:
        """Times another library's CLIP, trained by the same engine as GrowCLIP."""
        prototype = contender.build()  # not within the engine: ZeRO 3 cannot partition scalars during construction
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
        """Times another library's CLIP in plain PyTorch: fp32 weights, autocast, the fused AdamW."""
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
        """Times the steps of one contestant and appends its row.

        Args:
            row: columns that identify the contestant.
            step: runs one iteration.
            memory: created before the contestant.
            forward: operations of this rank's forward pass, without padding.
            contrasted_with: number of captions that each image is compared with.
            engine: the contestant's engine; None if its parts are not timed.
            parts: names of the submodules to time, by the name of the part; None if parts are not timed.
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
        """ds_configs/zeroN.json for this batch: in fp32 if the preset is, and without a second stream on the CPU."""
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
    """The name of a benchmark's results, which includes the number of ranks if there are several."""
    ranks = distributed.world_size()
    return name if ranks == 1 else f"{name}_{ranks}_ranks"


def check_first_step(step: Step, contrasted_with: int, masters: Masters, initial: Mapping[str, Tensor]) -> None:
    """Runs the first step and checks that its loss is near that of guessing and that it changes every matrix.

    Args:
        step: runs one iteration and returns the loss.
        contrasted_with: number of captions that each image is compared with.
        masters: yields the fp32 weights by name.
        initial: the initial fp32 weights by name.

    Raises:
        RuntimeError: the loss is far from ln `contrasted_with`, or a matrix is unchanged.
    """
    loss, guessing = step(), math.log(contrasted_with)
    if not abs(loss - guessing) < GUESSING * guessing:
        raise RuntimeError(
            f"the first loss is {loss}, far from ln {contrasted_with} = {guessing:.3f}, that of guessing"
        )
    for name, tensor in masters(lambda _: 0):
        if tensor is not None and tensor.dim() > 1 and torch.equal(tensor, initial[name]):
            raise RuntimeError(f"the first training step did not change {name}")
