"""Memory that a rank needs to train a model under DeepSpeed's ZeRO, modelled on the allocations of DeepSpeed 0.19.

With N ranks, P parameters, working copies of e bytes each (2 in bf16 and fp16), gradients accumulated in a bytes each,
and buckets of B elements:

    stage    parameters    masters, moments    stored gradients  buckets
    1        e P           12 P / N            a P               e B
    2        e P           12 P / N            a P / N           e B
    3        e P / N       12 P / N            a P / N           e B

At stages 1 and 2 gradients and buckets are allocated and freed within an iteration; at stage 3 they persist. Buckets
have their full size however small the model is, and overlap_comm makes them two. Stage 3 also keeps small parameters
whole, and keeps what the forward pass has gathered for the backward pass, up to stage3_max_reuse_distance. That setting
is ignored here: if it is below its default of 10⁹ elements, the figures are an upper bound. Memory peaks in the forward
pass, when stage 3 has gathered everything; in the backward pass, with activations, gradients so far and a bucket in
flight; or in the update, with gradients in fp32 but no activations. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.config.deepspeed import ResolvedDeepSpeed
from growclip_ds.config.sections import ActivationCheckpointing
from growclip_ds.costs.activations import FP32, moments, parts, total_kept

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
OPTIMIZER = 3 * FP32  # bytes per parameter: fp32 master and two moments


@dataclass(frozen=True)
class Sharding:
    """How DeepSpeed shards a model, and the buffers that it needs for that.

    Attributes:
        stage: the ZeRO stage.
        ranks: number of ranks over which the model is sharded.
        element: bytes per element of the working copies.
        accumulation: bytes per element of the gradients that a rank accumulates.
        communication: bytes per element of the gradients that are communicated.
        reduce_bucket: elements of a gradient bucket.
        contiguous: whether gradients are copied into a bucket, which exists for a whole pass.
        overlap: whether there are two buckets at stages 1 and 2, so that one is filled while the other is reduced;
            None: not stated, which happens at stage 3 only.
        prefetch: elements that stage 3 prefetches at a time.
        persistence: elements up to which stage 3 keeps a parameter whole.
        sub_group: elements of a rank's shard that stage 3 updates at a time.
        offload_optimizer: whether masters and moments are in host memory.
        offload_parameters: whether a rank's shard of the working copies is in host memory; no effect below stage 3.
    """

    stage: int
    ranks: int
    element: int
    accumulation: int
    communication: int
    reduce_bucket: int = 500_000_000
    contiguous: bool = True
    overlap: bool | None = None
    prefetch: int = 50_000_000
    persistence: int = 100_000
    sub_group: int = 1_000_000_000
    offload_optimizer: bool = False
    offload_parameters: bool = False

    @classmethod
    def of(cls, deepspeed: ResolvedDeepSpeed, ranks: int) -> Sharding:
        """The sharding of a DeepSpeed configuration; what it leaves out takes DeepSpeed's default."""
        zero: Mapping[str, Any] = deepspeed.config["zero_optimization"]
        element = BYTES[deepspeed.precision]
        accumulation = deepspeed.config.get("data_types", {}).get("grad_accum_dtype")
        stated = {
            "reduce_bucket": "reduce_bucket_size",
            "prefetch": "stage3_prefetch_bucket_size",
            "persistence": "stage3_param_persistence_threshold",
            "sub_group": "sub_group_size",
        }
        return cls(
            stage=deepspeed.stage,
            ranks=ranks,
            element=element,
            accumulation=BYTES[accumulation] if accumulation else element,
            communication=BYTES[deepspeed.config.get("communication_data_type", deepspeed.precision)],
            contiguous=zero.get("contiguous_gradients", True),
            overlap=zero.get("overlap_comm"),
            offload_optimizer=zero.get("offload_optimizer", {}).get("device") == "cpu",
            offload_parameters=zero.get("offload_param", {}).get("device") == "cpu",
            **{name: int(zero[key]) for name, key in stated.items() if key in zero},
        )

    def at_stage(self, stage: int) -> Sharding:
        """The same sharding at another ZeRO stage; stage 1 accumulates bf16 gradients in bf16."""
        if stage == self.stage:
            return self
        return replace(self, stage=stage, accumulation=self.element if stage == 1 else self.accumulation)

    @property
    def buckets(self) -> int:
        """Number of full-size buckets that exist at a time."""
        return int(self.contiguous) * (2 if self.overlap and self.stage < 3 else 1)


@dataclass(frozen=True)
class Load:
    """The batch that a rank works on in an iteration.

    Attributes:
        pairs: pairs per micro-batch.
        micro_batches: micro-batches per iteration.
        text_tokens: mean tokens per caption.
        global_batch: pairs over all ranks.
        checkpointing: activation checkpointing.
    """

    pairs: int
    micro_batches: int
    text_tokens: float
    global_batch: int
    checkpointing: ActivationCheckpointing = "off"


@dataclass(frozen=True)
class Memory:
    """Device memory of a rank in bytes, by purpose; not all of it is allocated at the same time.

    Attributes:
        parameters: working copies; at stage 3, the rank's shard and the parameters that are kept whole.
        optimizer: fp32 masters and moments.
        gradients: gradients that the rank stores until the update.
        buckets: gradient reduction buckets.
        gathered: parameters that stage 3 gathers for the passes.
        inputs: images, held from the beginning of an iteration.
        activations: activations kept for the backward pass.
        loss: buffers of the contrastive loss of the global batch.
        update: fp32 copies of the gradients while the optimizer runs.
        at_rest: memory that stays allocated between iterations.
        host: host memory in bytes, for what is offloaded.
        peak: maximum that is allocated at a time.
        peak_at: when the peak occurs: in the "forward" or "backward" pass, or in the "update".
    """

    parameters: float
    optimizer: float
    gradients: float
    buckets: float
    gathered: float
    inputs: float
    activations: float
    loss: float
    update: float
    at_rest: float
    host: float
    peak: float
    peak_at: str

    @property
    def states(self) -> float:
        """Working copies, masters and moments."""
        return self.parameters + self.optimizer

    def to_json(self) -> dict[str, Any]:
        return {name: value if isinstance(value, str) else round(value) for name, value in asdict(self).items()}


def memory(architecture: Architecture, sizes: ModelSizes, sharding: Sharding, load: Load) -> Memory:
    """Models the memory that a rank needs to train an architecture."""
    return _Counting(architecture, sizes, sharding, load).result()


class _Counting:
    """Memory of one model at the moments of an iteration at which it may peak."""

    def __init__(self, architecture: Architecture, sizes: ModelSizes, sharding: Sharding, load: Load) -> None:
        self.sizes, self.sharding, self.load = sizes, sharding, load
        shapes = architecture.parameter_shapes(sizes)
        self.counts = [math.prod(shape) for shape in shapes.values()]
        self.total = sum(self.counts)
        self.share = math.ceil(self.total / sharding.ranks)
        self.parts = parts(architecture, sizes, load.pairs, load.text_tokens, sharding.element, load.checkpointing)

    def result(self) -> Memory:
        s, load = self.sharding, self.load
        element, share = s.element, self.share
        optimizer = 0 if s.offload_optimizer else OPTIMIZER * share
        parameters, whole = self._parameters()
        bucket = self._bucket()
        gathered = self._gathered(whole)
        inputs = self._inputs()
        kept_throughout = bucket + self._kept() if s.stage == 3 else 0
        staging = element * max(self.counts) if s.offload_optimizer and s.stage < 3 else 0
        states = parameters + optimizer + kept_throughout + staging
        backward = max(
            *(
                alive + self._gradients(done) + self._still_gathered(gathered, done)
                for _, alive, done in moments(self.parts)
            ),
            self._gradients(self.total, last=True),
        )
        prefetched = element * min(s.prefetch, self.total - whole) if gathered and load.micro_batches == 1 else 0
        kept = total_kept(self.parts)
        forward = gathered + prefetched + kept * max(0.0, 1 - s.prefetch / self.total)
        loss = gathered + kept + self._loss()
        update = self._update()
        peaks = {"forward": max(forward, loss), "backward": backward, "update": update}
        at = max(peaks, key=peaks.__getitem__)
        return Memory(
            parameters=parameters,
            optimizer=optimizer,
            gradients=self._kept(),
            buckets=bucket,
            gathered=gathered,
            inputs=inputs,
            activations=kept,
            loss=self._loss(),
            update=update,
            at_rest=states,
            host=self._host(),
            peak=states + inputs + peaks[at],
            peak_at=at,
        )

    def _parameters(self) -> tuple[float, int]:
        """Bytes of the working copies, and number of elements that stage 3 keeps whole."""
        s = self.sharding
        if s.stage < 3:
            return s.element * self.total, 0
        whole = sum(count for count in self.counts if count <= s.persistence) if s.ranks > 1 else 0
        own = 0 if s.offload_parameters else self.share
        return s.element * (own + whole), whole

    def _gathered(self, whole: int) -> float:
        s = self.sharding
        if s.stage < 3 or (s.ranks == 1 and not s.offload_parameters):
            return 0
        if self.load.micro_batches > 1:
            # Forward passes with and without a backward pass alternate: DeepSpeed learns no order and gathers by layer.
            return s.element * max(part.elements for part in self.parts)
        return s.element * (self.total - whole)

    def _still_gathered(self, gathered: float, done: int) -> float:
        return gathered * max(0.0, 1 - done / self.total)

    def _bucket(self) -> float:
        s = self.sharding
        return (s.accumulation if s.stage == 1 else s.element) * self._bucket_elements * s.buckets

    @property
    def _bucket_elements(self) -> int:
        """Elements of a bucket, at least those of the largest gradient where `Engine` sets it so."""
        s = self.sharding
        return max(s.reduce_bucket, *self.counts) if s.stage < 3 and s.overlap else s.reduce_bucket

    def _kept(self) -> float:
        s = self.sharding
        if s.stage == 1:
            return s.accumulation * self.total
        return 0 if s.offload_optimizer else s.accumulation * self.share

    def _gradients(self, done: int, last: bool = False) -> float:
        """Bytes of gradients and of their buffers during the backward pass.

        Args:
            done: elements that have gradients so far.
            last: whether the pass is over and the remaining gradients are being reduced.
        """
        s = self.sharding
        element, accumulation, share = s.element, s.accumulation, self.share
        largest = max(count for count in self.counts if count <= max(done, 1))
        bucket = self._bucket()
        full = self._bucket_elements
        reduced = min(done, full) if last or done > full else 0  # copied for communication
        if s.stage == 3:
            cast = accumulation * reduced / s.ranks if accumulation != element else 0
            return element * (largest + reduced) + cast
        if s.stage == 1 and not s.overlap:
            # All gradients stay until the pass is over; then a bucket takes them, and this rank's are copied out of it.
            there = self.total if self.load.micro_batches > 1 else done
            own = 0 if s.offload_optimizer else max(0, share - reduced)
            return accumulation * (there + own) + bucket if last else accumulation * (there + largest)
        copied = element * reduced
        if s.offload_optimizer:
            return bucket + copied + element * largest
        if accumulation != element:
            return bucket + copied + accumulation * (share + min(largest, share) if reduced else share)
        earlier = element * share if self.load.micro_batches > 1 and s.stage == 2 else 0
        # This rank's gradients are copied out of a bucket once it is reduced, so none exist with the first bucket.
        own = element * share if reduced else 0
        return bucket + earlier + (copied + own if done > full else max(copied, own))

    def _update(self) -> float:
        s = self.sharding
        if s.offload_optimizer:
            return 0
        if s.stage == 3:
            share = min(self.share, s.sub_group)
            cast = 0 if s.accumulation == FP32 else s.accumulation
            return (cast + FP32) * share
        if s.accumulation == FP32 and s.element != FP32 and s.stage == 2:
            return FP32 * self.share  # already flat
        return (2 * s.element + (FP32 if s.element != FP32 else 0)) * self.share

    def _inputs(self) -> float:
        """Images of all micro-batches as uint8, and those of the running one in the model's precision."""
        pixels = 3 * self.sizes.image_size**2 * self.load.pairs
        return pixels * (self.load.micro_batches + self.sharding.element)

    def _loss(self) -> float:
        """Features of all ranks, their gradients in fp32 and in the features' dtype, and blocks of scores."""
        total = self.load.global_batch * self.sizes.embed_dim
        local = total / self.sharding.ranks
        element = self.sharding.element
        partial = 0.75 * FP32 * total  # at most; see `forward_block` of the loss kernels
        return element * (total + local) + FP32 * (total + local) + 2 * element * total + partial

    def _host(self) -> float:
        s = self.sharding
        own_parameters = s.element * self.share if s.offload_parameters and s.stage == 3 else 0
        if not s.offload_optimizer:
            return own_parameters
        masters = (OPTIMIZER + FP32) * self.share  # plus fp32 gradients
        if s.stage == 3:
            return own_parameters + masters + s.accumulation * self.share
        return masters + s.element * (self.share + max(self.counts))
