"""What LAMB and AdamW have in common: named tensors inside flat ZeRO shards, and the sampled subnet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from growclip_ds.architecture import Shape
from growclip_ds.optim.leading_box import leading_box
from growclip_ds.zero_shards import FlatShard, flat_shards

MOMENTS = ("exp_avg", "exp_avg_sq")


class Part(NamedTuple):
    """Elements of one tensor that this rank updates: views of the same shape."""

    weight: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


@dataclass(frozen=True)
class ActiveTensor:
    """A tensor that takes part in an iteration.

    Attributes:
        name: of the parameter.
        step: how many updates it has had, this one included.
        is_matrix: whether it has more than one dimension, and with that weight decay and a trust ratio.
        parts: what this rank has of its sampled slice; may be empty.
    """

    name: str
    step: int
    is_matrix: bool
    parts: list[Part]


class SubnetOptimizer(torch.optim.Optimizer, ABC):
    """An optimiser under DeepSpeed's ZeRO that knows the tensors in its shards and updates a sampled subnet alone.

    DeepSpeed hands flat shards to `step`, several times an iteration where there are several. The layout inside comes
    from `attach`, which must be called when the engine has been built. Every rank must make the same calls.

    A tensor that the active subnet does not have keeps its weights, moments and number of updates, and so does
    every element outside the leading slice that the subnet uses: to the bit.

    State of each shard: `exp_avg` and `exp_avg_sq`, laid out like it. `steps`: number of updates by parameter name.

    Args:
        params: the parameters, as for any optimiser; one group is enough, as what decays is decided by tensor.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: of tensors with more than one dimension.
        upper_bounds: largest value that the elements of a parameter may have after an update, by name.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        upper_bounds: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.upper_bounds = dict(upper_bounds or {})
        self.steps: dict[str, int] = {}
        self.shards: list[FlatShard] = []
        self._active: Mapping[str, Shape] | None = None

    def attach(self, zero_optimizer: Any, names: Mapping[nn.Parameter, str]) -> None:
        """Learns the layout of the shards and makes the moments, zero. For each engine once, after it is built."""
        self.shards = flat_shards(zero_optimizer, names)
        self.steps = {segment.name: 0 for shard in self.shards for segment in shard.segments}
        for shard in self.shards:
            for moment in MOMENTS:
                self.state[shard.flat][moment] = torch.zeros_like(shard.flat, requires_grad=False)
        self._shard_of = {shard.flat: shard for shard in self.shards}

    def set_active(self, shapes: Mapping[str, Shape] | None) -> None:
        """Chooses what the next updates are confined to.

        Args:
            shapes: by parameter name, the shape of the leading slice that the sampled subnet uses; None for all of
                every parameter.

        Raises:
            ValueError: a name that no parameter has.
        """
        if shapes is not None and (unknown := shapes.keys() - self.steps.keys()):
            raise ValueError(f"the sampled subnet has parameters that the model has not: {sorted(unknown)[:3]}")
        self._active = shapes

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates the shards that DeepSpeed has put into the parameter groups, from their `grad`, which is used up."""
        for group in self.param_groups:
            for flat in group["params"]:
                shard = self._shard_of[flat]
                tensors = self._active_tensors(shard)
                self.update(shard, tensors, group)
                for tensor in tensors:
                    if tensor.name in self.upper_bounds:
                        for part in tensor.parts:
                            part.weight.clamp_(max=self.upper_bounds[tensor.name])

    @abstractmethod
    def update(self, shard: FlatShard, tensors: list[ActiveTensor], group: dict[str, Any]) -> None:
        """One update of a shard's active tensors with a group's hyper-parameters; collective over `shard.group`."""

    def _active_tensors(self, shard: FlatShard) -> list[ActiveTensor]:
        state = self.state[shard.flat]
        buffers = (shard.flat, shard.flat.grad, state["exp_avg"], state["exp_avg_sq"])
        tensors = []
        for segment in shard.segments:
            box = segment.shape if self._active is None else self._active.get(segment.name)
            if box is None:
                continue
            self.steps[segment.name] += 1
            piece = shard.piece(segment)
            local = [piece.of(buffer) for buffer in buffers]
            spans = leading_box(segment.shape, box, piece.param_offset, piece.numel)
            parts = [Part(*(span.of(buffer) for buffer in local)) for span in spans]
            tensors.append(ActiveTensor(segment.name, self.steps[segment.name], len(segment.shape) > 1, parts))
        return tensors
