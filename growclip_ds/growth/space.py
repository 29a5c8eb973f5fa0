"""The candidates of a growth step (Section 3.2, Table 2): every dimension stays or grows."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch

from growclip_ds.architecture import Architecture
from growclip_ds.errors import InputError

if TYPE_CHECKING:
    from growclip_ds.config.config import Config


class GrowthSpace:
    """The architectures that a model may grow into, in the lexicographic order of their six integers.

    Attributes:
        base: the architecture to grow from.
        candidates: the architectures that it may grow into, itself included.
        supernet: Ψ, the smallest architecture that covers every candidate.

    Args:
        base: the architecture to grow from; always a candidate itself.
        conv_step: convolutional layers added where l^I grows; 0 keeps the dimension as it is.
        block_step: blocks added where b^I, b^T or b^S grow.
        head_step: heads added where h^I or h^T grow.
        frozen: names of dimensions that do not grow; each halves the space.

    Raises:
        ValueError: a negative step, or a frozen name that is no dimension.
    """

    def __init__(
        self,
        base: Architecture,
        conv_step: int = 2,
        block_step: int = 4,
        head_step: int = 4,
        frozen: Iterable[str] = (),
    ) -> None:
        for name, step in (("conv_step", conv_step), ("block_step", block_step), ("head_step", head_step)):
            if step < 0:
                raise ValueError(f"{name} must not be negative, but is {step}")
        frozen = set(frozen)
        if unknown := frozen - {name for name, _ in base.items()}:
            raise ValueError(f"no dimension is called {sorted(unknown)}; there are {[n for n, _ in base.items()]}")
        choices = []
        for name, value in base.items():
            step = conv_step if name == "conv_layers" else head_step if name.endswith("heads") else block_step
            choices.append((value, value + step) if step and name not in frozen else (value,))
        self.base = base
        self._hold(Architecture(*values) for values in itertools.product(*choices))

    def _hold(self, candidates: Iterable[Architecture]) -> None:
        self.candidates = tuple(candidates)
        largest = {name: max(getattr(one, name) for one in self.candidates) for name, _ in self.base.items()}
        self.supernet = Architecture(**largest)

    def __iter__(self) -> Iterator[Architecture]:
        return iter(self.candidates)

    def __len__(self) -> int:
        return len(self.candidates)

    def within(self, max_parameters: int, count: Callable[[Architecture], int]) -> GrowthSpace:
        """The space restricted to candidates of at most `max_parameters`, as counted by `count`.

        Raises:
            ValueError: the base itself exceeds the limit.
        """
        if count(self.base) > max_parameters:
            raise ValueError(
                f"max_parameters is {max_parameters:,}, but the architecture to grow from, {self.base}, "
                f"has {count(self.base):,} already"
            )
        space = copy.copy(self)
        space._hold(candidate for candidate in self.candidates if count(candidate) <= max_parameters)
        return space

    def sample(self, generator: torch.Generator | None = None) -> Architecture:
        """A uniformly random candidate (Eq. 6 by Monte Carlo)."""
        return self.candidates[int(torch.randint(len(self.candidates), (), generator=generator))]


def growth_space(config: Config, base: Architecture, count: Callable[[Architecture], int]) -> GrowthSpace:
    """The growth space of a growth step of a run.

    Args:
        config: the run's configuration.
        base: the architecture to grow from.
        count: returns an architecture's number of parameters, which `growth.max_parameters` limits.

    Raises:
        ValueError: the base itself exceeds the limit.
    """
    space = unlimited_growth_space(config, base)
    limit = config.growth.max_parameters
    return space if limit is None else space.within(limit, count)


def require_base_within_limit(
    config: Config, base: Architecture, count: Callable[[Architecture], int], name: str
) -> None:
    """Checks, before any work, that a run may grow at all.

    Args:
        config: the run's configuration.
        base: the architecture to grow from.
        count: returns an architecture's number of parameters.
        name: what has the base architecture, for the message.

    Raises:
        InputError: `base` exceeds `growth.max_parameters`.
    """
    limit = config.growth.max_parameters
    if limit is not None and not config.has_fixed_model and count(base) > limit:
        raise InputError(
            f"growth.max_parameters is {limit:,}, but {name} {base} has {count(base):,} already; raise the limit"
        )


def unlimited_growth_space(config: Config, base: Architecture) -> GrowthSpace:
    """As `growth_space`, including the candidates that exceed `growth.max_parameters`."""
    growth, only = config.growth, config.ablation.grow_only
    frozen = growth.frozen if only is None else {name for name, _ in base.items()} - {only}
    return GrowthSpace(base, growth.conv_step, growth.block_step, growth.head_step, frozen)
