"""What each growth step of a run may train, and its FLOPs. No torch.

Which candidate a step will select is not known in advance, so a run is described by its cheapest and its dearest path:
the choices, one per step, with the fewest and the most FLOPs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.config.config import Config
from growclip_ds.costs.flops import FORWARD_FLOPS, block_group_flops, loss_flops, training_flops
from growclip_ds.growth.phases import Phase, phase_epochs
from growclip_ds.growth.space import GrowthSpace, growth_space, unlimited_growth_space


@dataclass(frozen=True)
class Begun:
    """The progress of a run before what is planned; the defaults are those of a new run.

    Attributes:
        name: where the progress is from, for messages; empty for a new run.
        finished: number of finished growth steps.
        architectures: the models of the finished growth steps, and that of the next one if it is already selected.
        over: phases of the next growth step that need no more training.
        iterations: iterations that interrupted phases of the next growth step have done.
        ranks: number of ranks last used; None if not known.
    """

    name: str = ""
    finished: int = 0
    architectures: tuple[Architecture, ...] = ()
    over: frozenset[Phase] = frozenset()
    iterations: Mapping[Phase, int] = field(default_factory=dict)
    ranks: int | None = None

    def is_over(self, step: int, phase: Phase) -> bool:
        """Whether a phase needs no more training."""
        return step <= self.finished or (step == self.finished + 1 and phase in self.over)

    def iterations_of(self, step: int, phase: Phase) -> int:
        """Iterations that a phase has done already."""
        return self.iterations.get(phase, 0) if step == self.finished + 1 else 0


@dataclass(frozen=True)
class PhaseCost:
    """A phase of a growth step on one path.

    Attributes:
        step: the growth step.
        phase: the phase of that step.
        architecture: the architecture that the engine is built for.
        epochs: passes over the step's data, including those done already.
        flops: FLOPs of training on one pair, the mean over subnets where they are sampled.
        done: iterations that the phase has done already.
    """

    step: int
    phase: Phase
    architecture: Architecture
    epochs: int
    flops: float
    done: int = 0


@dataclass(frozen=True)
class Path:
    """A choice for every growth step.

    Attributes:
        architectures: the trained architecture of each step, finished steps included.
        phases: remaining phases of all steps, in order.
    """

    architectures: tuple[Architecture, ...]
    phases: tuple[PhaseCost, ...]

    def of_step(self, step: int) -> list[PhaseCost]:
        """The remaining phases of a growth step."""
        return [phase for phase in self.phases if phase.step == step]


class GrowthSteps:
    """The growth steps of a configuration.

    Args:
        config: the run's configuration; growth starts from `model.base`.
        sizes: sizes of the models' input and embedding space.
        text_tokens: mean tokens per caption.
        micro_batches: micro-batches per rank and iteration; if there are several, each takes two forward passes.
        begun: the progress of the run; None for a new one.
    """

    def __init__(
        self,
        config: Config,
        sizes: ModelSizes,
        text_tokens: float,
        micro_batches: int = 1,
        begun: Begun | None = None,
    ) -> None:
        self.config, self.sizes, self.text_tokens, self.micro_batches = config, sizes, text_tokens, micro_batches
        self.begun = begun or Begun()
        self.parameters = functools.cache(sizes.parameters_of)
        self.pair_flops = functools.cache(self._pair_flops)
        self.space = functools.cache(self._space)
        self._mean_of_subnets = functools.cache(lambda base: fmean(map(self.pair_flops, self.space(base))))

    @property
    def count(self) -> int:
        return self.config.num_growth_steps

    @property
    def base(self) -> Architecture:
        """The architecture of growth step 1."""
        config = self.config
        if self.begun.architectures:
            return self.begun.architectures[0]
        return config.fixed_architecture if config.has_fixed_model else config.model.base

    def of_sizes(self, sizes: ModelSizes) -> GrowthSteps:
        """The same run from its start, with models of other sizes."""
        return GrowthSteps(self.config, sizes, self.text_tokens, self.micro_batches)

    @property
    def kind(self) -> str:
        """The kind of the models that are trained, `clip` or `growclip`."""
        return "clip" if self.config.has_fixed_model and self.config.fixed_model_is_clip else "growclip"

    def forward(self, architecture: Architecture, kind: str | None = None) -> float:
        """FLOPs of a forward pass on one pair, for a model of the run's kind unless another is given."""
        return FORWARD_FLOPS[kind or self.kind](architecture, self.sizes, self.text_tokens)

    def all_candidates(self, base: Architecture) -> tuple[Architecture, ...]:
        """Architectures that a model may grow into in one step, including those beyond `growth.max_parameters`."""
        return self._unlimited(base).candidates

    def cheapest(self, samples: Sequence[int] | None) -> Path:
        """The path with the fewest FLOPs.

        Args:
            samples: number of samples of each subset; None: not known, and assumed to be equal.
        """
        return self._extreme(min, samples)

    def dearest(self, samples: Sequence[int] | None) -> Path:
        """The path with the most FLOPs; for `samples` see `cheapest`."""
        return self._extreme(max, samples)

    def phases(self, step: int, base: Architecture, chosen: Architecture) -> list[PhaseCost]:
        """The remaining phases of a growth step that grows from `base` to `chosen`."""
        found = []
        for phase, epochs in phase_epochs(self.config, step).items():
            if self.begun.is_over(step, phase):
                continue
            trained = chosen if phase is Phase.TRAIN else self.space(base).supernet
            whole = phase in (Phase.TRAIN, Phase.FINETUNE)  # rather than a subnet in each iteration
            flops = self.pair_flops(trained) if whole else self._mean_of_subnets(base)
            found.append(PhaseCost(step, phase, trained, epochs, flops, self.begun.iterations_of(step, phase)))
        return found

    def _pair_flops(self, architecture: Architecture, kind: str | None = None) -> float:
        """FLOPs of training on one pair, loss and recomputation included; see `forward`."""
        config = self.config
        once = self.forward(architecture, kind)
        total = training_flops(once)
        if self.micro_batches > 1:
            total += once
        if config.training.activation_checkpointing != "off":
            total += block_group_flops(architecture, self.sizes, self.text_tokens)
        batch = config.training.global_batch_size
        return total + loss_flops(batch, self.sizes.embed_dim) / batch

    def _unlimited(self, base: Architecture) -> GrowthSpace:
        return GrowthSpace(base, 0, 0, 0) if self.config.has_fixed_model else unlimited_growth_space(self.config, base)

    def _space(self, base: Architecture) -> GrowthSpace:
        return (
            self._unlimited(base) if self.config.has_fixed_model else growth_space(self.config, base, self.parameters)
        )

    def _choices(self, step: int, base: Architecture) -> Sequence[Architecture]:
        """Architectures to consider for a growth step, among which are the cheapest and the dearest choice."""
        if step <= len(self.begun.architectures):
            return [self.begun.architectures[step - 1]]
        space = self.space(base)
        if self.config.ablation.grow_only is not None:
            return [space.supernet]
        # Without a limit, more of anything costs more, now and in all later steps.
        return [space.base, space.supernet] if self.config.growth.max_parameters is None else space.candidates

    def _extreme(self, better: Callable[..., Path], samples: Sequence[int] | None) -> Path:
        """Finds the best path by dynamic programming: of the paths to an architecture, only the best is continued.

        Iterations that an interrupted phase has done are counted too, which adds the same to all paths.
        """
        pairs = [1] * self.count if samples is None else samples
        arrived = [sum(pairs[:step]) for step in range(1, self.count + 1)]

        def cost(path: Path) -> float:
            return sum(phase.epochs * phase.flops * arrived[phase.step - 1] for phase in path.phases)

        ends = {self.base: Path((self.base,), tuple(self.phases(1, self.base, self.base)))}
        for step in range(2, self.count + 1):
            following: dict[Architecture, Path] = {}
            for base, path in ends.items():
                for chosen in self._choices(step, base):
                    longer = Path((*path.architectures, chosen), (*path.phases, *self.phases(step, base, chosen)))
                    following[chosen] = better(following.get(chosen, longer), longer, key=cost)
            ends = following
        return better(ends.values(), key=cost)
