"""What engines really hold: every allocation of tensor memory in this process, from before an engine is built."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.config.deepspeed import Precision, ResolvedDeepSpeed
from growclip_ds.config.sections import ActivationCheckpointing
from growclip_ds.costs.memory import Load
from growclip_ds.model.checkpointing import checkpoint_activations
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.model.packed import pack
from growclip_ds.optim import Lamb
from growclip_ds.training.engine import Engine
from growclip_ds.training.iteration import MicroBatch, train_iteration

SIZES = ModelSizes(vocab_size=1000, image_size=32, embed_dim=64)
BUCKET, PREFETCH = 500_000, 300_000  # elements: several of each to a model
# Which argument of a collective is the whole of what the ranks have together, or each of them has.
WHOLE = {
    "c10d::allreduce_": ("all-reduce", 0),
    "c10d::allgather_": ("all-gather", 0),
    "c10d::_allgather_base_": ("all-gather", 0),
    "c10d::reduce_scatter_": ("reduce-scatter", 1),
    "c10d::_reduce_scatter_base_": ("reduce-scatter", 1),
}


class Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, of all that are made while the mode is on.

    A tensor counts from the operator that returns it until its storage is freed, whoever holds it until then. What an
    operator takes for itself while it runs is not seen.

    Attributes:
        live: bytes at this moment.
        peak: the most since the last `restart`.
        communicated: since then, bytes of the tensors that collectives went over, by the collective's name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.communicated: Counter[str] = Counter()
        self._storages: dict[int, tuple[weakref.ref, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        if func.namespace == "c10d" and func._schema.name in WHOLE:
            name, place = WHOLE[func._schema.name]
            tensors = [leaf for leaf in tree_leaves(args[place]) if isinstance(leaf, Tensor)]
            self.communicated[name] += sum(tensor.nbytes for tensor in tensors)
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                self._count(tensor.untyped_storage())
        return results

    def restart(self) -> None:
        gc.collect()
        self.peak = self.live
        self.communicated.clear()

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self._storages[key] = (weakref.ref(storage, lambda _: self._freed(key)), size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _freed(self, key: int) -> None:
        self.live -= self._storages.pop(key)[1]


@dataclass(frozen=True)
class Case:
    """An engine and what it is fed.

    Attributes:
        architecture: of the model.
        stage: of ZeRO.
        dtype: fp32 or bf16.
        pairs: a micro-batch.
        micro_batches: of a rank in an iteration.
        captions: tokens of each caption.
        checkpointing: of activations.
        sizes: of the model.
        zero: more of zero_optimization.
        config: more of DeepSpeed's configuration.
    """

    architecture: Architecture
    stage: int
    dtype: Precision = "fp32"
    pairs: int = 16
    micro_batches: int = 1
    captions: int = 12
    checkpointing: ActivationCheckpointing = "off"
    sizes: ModelSizes = SIZES
    zero: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def deepspeed(self) -> ResolvedDeepSpeed:
        precision = {} if self.dtype == "fp32" else {self.dtype: {"enabled": True}}
        zero = {"stage": self.stage, "reduce_bucket_size": BUCKET} | self.zero
        zero |= {"stage3_prefetch_bucket_size": PREFETCH} if self.stage == 3 else {"allgather_bucket_size": BUCKET}
        config = {
            "train_micro_batch_size_per_gpu": self.pairs,
            "gradient_accumulation_steps": self.micro_batches,
            "gradient_clipping": 0.0,
            "zero_optimization": zero,
            **precision,
            **self.config,
        }
        return ResolvedDeepSpeed(config, self.pairs, self.micro_batches, self.stage, self.dtype)

    def load(self, ranks: int) -> Load:
        return Load(
            self.pairs, self.micro_batches, self.captions, ranks * self.pairs * self.micro_batches, self.checkpointing
        )


@dataclass(frozen=True)
class Measured:
    """Bytes of one rank.

    Attributes:
        states: of the engine once it is built and filled.
        peaks: the most in each of three iterations.
        rest: beside the micro-batches, after the last of them.
        inputs: of the micro-batches.
        communicated: in the last iteration, by collective.
    """

    states: int
    peaks: list[int]
    rest: int
    inputs: int
    communicated: dict[str, int]


def measure(cases: list[Case]) -> list[Measured]:
    return [_measure(case) for case in cases]


def _measure(case: Case) -> Measured:
    def build() -> GrowCLIP:
        return checkpoint_activations(
            GrowCLIP(case.architecture, **asdict(case.sizes), initialise=False), case.checkpointing
        )

    generator = torch.Generator().manual_seed(0)
    shapes = case.architecture.parameter_shapes(case.sizes)
    gc.collect()
    with Allocations() as memory:
        engine = Engine(build, lambda named: Lamb([p for _, p in named]), case.deepspeed.config)
        engine.load_masters((n, torch.randn(shape, generator=generator) / 20) for n, shape in shapes.items())
        memory.restart()
        states = memory.live
        batches = micro_batches(case)
        inputs = memory.live - states
        peaks = []
        for _ in range(3):
            memory.restart()
            train_iteration(engine, batches, 1e-4)
            peaks.append(memory.peak)
            communicated = dict(memory.communicated)
        memory.restart()
        measured = Measured(states, peaks, memory.live - inputs, inputs, communicated)
        engine.destroy()
    return measured


def micro_batches(case: Case) -> list[MicroBatch]:
    size = case.sizes.image_size
    text = pack([[*range(1, case.captions), case.sizes.vocab_size - 1]] * case.pairs)
    pixels = (case.pairs, 3, size, size)
    return [(torch.randint(256, pixels, dtype=torch.uint8), text) for _ in range(case.micro_batches)]
