"""What LAMB and AdamW have in common: named tensors inside flat ZeRO shards, and the sampled subnet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from growclip_ds.architecture import Shape
from growclip_ds.optim.leading_box import leading_box
from growclip_ds.optim.zero_shards import FlatShard, flat_shards
from growclip_kernels.optimizer import Buffers, Region, Regions

MOMENTS = ("exp_avg", "exp_avg_sq")
REMEMBERED = 256  # subnets whose layout is kept, of each shard: the same candidates come up again and again


class ActiveTensors(NamedTuple):
    """The tensors of a shard that take part in an iteration, also those of which this rank holds nothing.

    Attributes:
        names: of the parameters, the same on every rank.
        regions: what this rank has of each one's sampled slice.
    """

    names: tuple[str, ...]
    regions: Regions


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
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-4,
        upper_bounds: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.upper_bounds = dict(upper_bounds or {})
        self.steps: dict[str, int] = {}
        self.shards: list[FlatShard] = []
        self._active: Mapping[str, Shape] | None = None
        self._known: dict[Any, ActiveTensors] = {}

    def attach(self, zero_optimizer: Any, names: Mapping[nn.Parameter, str]) -> None:
        """Learns the layout of the shards and makes the moments, zero. For each engine once, after it is built."""
        self.shards = flat_shards(zero_optimizer, names)
        self._known.clear()
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
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates the shards that DeepSpeed has put into the parameter groups, from their `grad`, which is used up."""
        for group in self.param_groups:
            for flat in group["params"]:
                shard = self._shard_of[flat]
                tensors = self._active_tensors(shard)
                if not tensors.names:
                    continue  # on every rank
                for name in tensors.names:
                    self.steps[name] += 1
                buffers = Buffers(flat.detach(), flat.grad, *(self.state[flat][moment] for moment in MOMENTS))
                self.update(shard, buffers, tensors, [self.steps[name] for name in tensors.names], group)
                for name, region in zip(tensors.names, tensors.regions.regions, strict=True):
                    if name in self.upper_bounds:
                        for span in region.spans:
                            span.of(buffers.weight).clamp_(max=self.upper_bounds[name])

    @abstractmethod
    def update(
        self, shard: FlatShard, buffers: Buffers, tensors: ActiveTensors, steps: list[int], group: dict[str, Any]
    ) -> None:
        """One update of a shard's active tensors, collective over `shard.group`.

        Args:
            shard: that is updated.
            buffers: its masters, gradient and moments.
            tensors: what takes part.
            steps: updates that each of these has had, this one included.
            group: hyper-parameters.
        """

    def _active_tensors(self, shard: FlatShard) -> ActiveTensors:
        key = shard, None if self._active is None else tuple(self._active.items())
        if key not in self._known:
            if len(self._known) >= REMEMBERED * len(self.shards):
                del self._known[next(iter(self._known))]
            self._known[key] = self._find_active(shard)
        return self._known[key]

    def _find_active(self, shard: FlatShard) -> ActiveTensors:
        names, regions = [], []
        for segment in shard.segments:
            box = segment.shape if self._active is None else self._active.get(segment.name)
            if box is None:
                continue
            piece = shard.piece(segment)
            spans = leading_box(segment.shape, box, piece.param_offset, piece.numel)
            in_shard = tuple(span._replace(offset=span.offset + piece.flat_offset) for span in spans)
            names.append(segment.name)
            regions.append(Region(in_shard, is_matrix=len(segment.shape) > 1))
        return ActiveTensors(tuple(names), Regions(regions))
