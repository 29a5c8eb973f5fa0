"""Base class of LAMB and AdamW, which updates the named tensors of a sampled subnet inside flat ZeRO shards."""

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
REMEMBERED = 256  # subnets whose layout is cached, per shard: the same candidates are sampled repeatedly


class ActiveTensors(NamedTuple):
    """The tensors of a shard that an iteration updates, including those of which this rank holds nothing.

    Attributes:
        names: names of the parameters, the same on every rank.
        regions: this rank's part of each parameter's sampled slice.
    """

    names: tuple[str, ...]
    regions: Regions


class SubnetOptimizer(torch.optim.Optimizer, ABC):
    """An optimizer for DeepSpeed's ZeRO that knows the tensors in its shards and can update only a sampled subnet.

    DeepSpeed calls `step` with flat shards in the parameter groups, several times per iteration if there are several
    shards. `attach` finds the layout of the tensors in them and must be called once the engine is built. Every rank
    must make the same calls.

    Tensors that the active subnet does not have, and elements outside the leading slice that it uses, keep their
    weights and moments bit for bit; such tensors also keep their number of updates.

    The state of each shard is `exp_avg` and `exp_avg_sq`, laid out like the shard. `steps` has the number of updates
    by parameter name.

    Args:
        params: the parameters, as for any optimizer; one group is enough, as weight decay depends on each tensor.
        lr: learning rate.
        betas: decay rates of the first and second moments.
        eps: added to the root of the second moment.
        weight_decay: weight decay of tensors with more than one dimension.
        upper_bounds: by parameter name, the largest value of its elements after an update.
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
        """Finds the layout of the shards and creates zero moments. Call it once per engine, after it is built."""
        self.shards = flat_shards(zero_optimizer, names)
        self._known.clear()
        self.steps = {segment.name: 0 for shard in self.shards for segment in shard.segments}
        for shard in self.shards:
            for moment in MOMENTS:
                self.state[shard.flat][moment] = torch.zeros_like(shard.flat, requires_grad=False)
        self._shard_of = {shard.flat: shard for shard in self.shards}

    def set_active(self, shapes: Mapping[str, Shape] | None) -> None:
        """Sets the slices to which the next updates are confined.

        Args:
            shapes: by parameter name, the shape of the leading slice that the sampled subnet uses; None for the whole
                model.

        Raises:
            ValueError: there is no parameter of some name.
        """
        if shapes is not None and (unknown := shapes.keys() - self.steps.keys()):
            raise ValueError(f"the sampled subnet has parameters that the model does not have: {sorted(unknown)[:3]}")
        self._active = shapes

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates the shards that DeepSpeed has put into the parameter groups; their `grad` may be overwritten."""
        for group in self.param_groups:
            for flat in group["params"]:
                shard = self._shard_of[flat]
                tensors = self._active_tensors(shard)
                if not tensors.names:
                    continue  # on every rank alike
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
        """Updates a shard's active tensors. Collective over `shard.group`.

        Args:
            shard: the shard to update.
            buffers: the shard's masters, gradient and moments.
            tensors: the tensors to update.
            steps: number of updates of each of these tensors, including this one.
            group: the parameter group, with the hyper-parameters.
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
