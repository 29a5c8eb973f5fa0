"""Bytes that a rank sends per iteration under DeepSpeed's ZeRO, with ring algorithms. No torch.

Each of N ranks sends (N - 1) / N of a tensor that is gathered or reduce-scattered, and twice that of a tensor that is
all-reduced. DeepSpeed 0.19 all-reduces gradients at stages 1 and 2 as well (each rank keeps its shard of the sum), at
stage 2 after every micro-batch.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.costs.activations import FP32
from growclip_ds.costs.memory import Load, Sharding


@dataclass(frozen=True)
class Communication:
    """Bytes that a rank sends per iteration.

    Attributes:
        gradients: gradients that are all-reduced or reduce-scattered.
        parameters: parameters that are gathered: after the update at stages 1 and 2, for the passes at stage 3.
        loss: caption features that are gathered, and their gradients.
    """

    gradients: float
    parameters: float
    loss: float

    @property
    def total(self) -> float:
        return self.gradients + self.parameters + self.loss

    def to_json(self) -> dict[str, Any]:
        return {name: round(value) for name, value in {**asdict(self), "total": self.total}.items()}


def communication(architecture: Architecture, sizes: ModelSizes, sharding: Sharding, load: Load) -> Communication:
    """Counts what a rank sends per iteration to train an architecture."""
    share = (sharding.ranks - 1) / sharding.ranks
    counts = [math.prod(shape) for shape in architecture.parameter_shapes(sizes).values()]
    elements = sum(counts)
    reductions = load.micro_batches if sharding.stage > 1 else 1
    gradients = reductions * share * (1 if sharding.stage == 3 else 2) * sharding.communication * elements
    # At stage 3 the forward pass leaves everything gathered for the backward pass. But several micro-batches take two
    # forward passes, whose order DeepSpeed does not learn, so each of the three passes gathers again. Small parameters
    # are always whole.
    gathered = elements
    if sharding.stage == 3 and load.micro_batches > 1:
        divided = sum(count for count in counts if count > sharding.persistence)
        gathered += (3 * load.micro_batches - 1) * divided
    features = load.global_batch * sizes.embed_dim
    number = sharding.element if load.micro_batches == 1 else FP32  # kept in fp32 between the two passes
    return Communication(gradients, share * sharding.element * gathered, share * features * (number + FP32))
