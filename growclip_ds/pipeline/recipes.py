"""The methods: each defines, for every phase of a growth step, the model, its initial weights and the sampled subnets.

Everything else (data and their order, schedule, optimizer, checkpoints, evaluation) belongs to the phase and is the
same for all methods. `growclip_ds.growth.phases` defines the length of phases; docs/baselines.md has an overview.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from growclip_ds.architecture import Architecture
from growclip_ds.baselines.starts import continued, shrunk_and_perturbed
from growclip_ds.checkpoint.checkpoint import Checkpoint
from growclip_ds.config.config import Config
from growclip_ds.distributed import on_every_rank
from growclip_ds.errors import InputError
from growclip_ds.growth.inheritance import PIM, inherited_tensor, inherited_tensors
from growclip_ds.growth.phases import Phase, phase_epochs
from growclip_ds.growth.space import GrowthSpace, growth_space
from growclip_ds.model.spec import GrowCLIPSpec, ModelSpec, Weights
from growclip_ds.pipeline.context import RunContext
from growclip_ds.pipeline.phase import PhaseRun
from growclip_ds.pipeline.prepare import RunInputs
from growclip_ds.seeds import named_seed


class Recipe(ABC):
    """A method as a sequence of phases.

    Args:
        run: the context of the run.
    """

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self.config, self.folder, self.inputs = run.config, run.folder, run.inputs
        growth = self.config.growth
        fresh = 1.0 if growth.fresh_weights == "full" else growth.gamma
        self.pim = PIM(growth.beta, growth.gamma, fresh, growth.blend_vectors)

    @abstractmethod
    def run(self, step: int, phase: Phase) -> None:
        """Runs a phase of a growth step, all earlier phases being finished.

        Raises:
            Stopped: on every rank, if some rank was asked to stop.
        """

    def _train(self, step: int, spec: ModelSpec, weights: Weights) -> None:
        """Trains and evaluates the model of a growth step, in the step's last phase."""
        with PhaseRun(self._run, step, Phase.TRAIN, spec, weights) as run:
            run.train(self._epochs(step, Phase.TRAIN))
            run.evaluate()

    def _select(self, step: int, phase: Phase, space: GrowthSpace, weights: Weights) -> None:
        """Trains a supernet by sampled subnets (Eq. 6), evaluates every candidate and selects the best by Eq. 7."""
        with PhaseRun(self._run, step, phase, self._spec(space.supernet), weights) as run:
            run.train(self._epochs(step, phase), space)
            run.select(space)

    def _growth_space(self, step: int) -> GrowthSpace:
        """The space that the previous step's architecture may grow into."""
        base = self._weights(step - 1, Phase.TRAIN).architecture
        return growth_space(self.config, base, self.inputs.sizes.parameters_of)

    def _spec(self, architecture: Architecture) -> GrowCLIPSpec:
        return GrowCLIPSpec(architecture, self.inputs.sizes, self.inputs.tokenizer.end_of_text)

    def _epochs(self, step: int, phase: Phase) -> int:
        return phase_epochs(self.config, step)[phase]

    def _weights(self, step: int, phase: Phase) -> Checkpoint:
        return on_every_rank(lambda: Checkpoint(self.folder.weights(step, phase)))

    def _seed(self, step: int, phase: Phase) -> str:
        """Seed of a phase's random weights, combined with each tensor's name."""
        return f"{self.config.seed}/{step}/{phase}"


class GrowCLIPRecipe(Recipe):
    """The paper's method (Section 3.4)."""

    def run(self, step: int, phase: Phase) -> None:
        match phase, step:
            case Phase.FINETUNE, _:
                self.finetune_supernet(step)
            case Phase.SELECTION, _:
                self.select_architecture(step)
            case Phase.TRAIN, 1:
                self.train_base()
            case Phase.TRAIN, _:
                self.train_selected(step)

    def train_base(self) -> None:
        """Growth step 1: trains the base model from scratch."""
        spec = self._spec(self.config.model.base)
        self._train(1, spec, spec.initial(self._seed(1, Phase.TRAIN)))

    def finetune_supernet(self, step: int) -> None:
        """Phase 1: the supernet inherits from the previous step's model (Eq. 5) and is briefly trained as a whole."""
        spec = self._spec(self._growth_space(step).supernet)
        read = self._supernet(step, Phase.FINETUNE)
        with PhaseRun(self._run, step, Phase.FINETUNE, spec, ((name, read(name)) for name in spec.shapes)) as run:
            run.train(self._epochs(step, Phase.FINETUNE))

    def select_architecture(self, step: int) -> None:
        """Phase 2: trains the supernet further by sampled subnets and selects a candidate."""
        space = self._growth_space(step)
        read = self._supernet(step, Phase.SELECTION)
        self._select(step, Phase.SELECTION, space, ((name, read(name)) for name in self._spec(space.supernet).shapes))

    def train_selected(self, step: int) -> None:
        """Phase 3: the selected architecture inherits from its slice of the supernet (Eq. 8) and is trained."""
        chosen = self._chosen(step)
        pim = self.pim if self.config.ablation.pim_selected else self.pim.left_out()
        read, seed = self._supernet(step, Phase.TRAIN), self._seed(step, Phase.TRAIN)
        weights = inherited_tensors(chosen, chosen, self.inputs.sizes, read, pim, seed)
        self._train(step, self._spec(chosen), weights)

    def _supernet(self, step: int, phase: Phase) -> Callable[[str], Tensor]:
        """Returns a reader of the supernet's tensors at the start of a phase.

        They are as the step's previous phase left them; in its first phase, they inherit from the last step's model.
        """
        before = list(itertools.takewhile(lambda other: other is not phase, phase_epochs(self.config, step)))
        if before:
            return self._weights(step, before[-1]).read
        old, new = self._weights(step - 1, Phase.TRAIN), self._growth_space(step).supernet
        pim = self.pim if self.config.ablation.pim_supernet else self.pim.left_out()
        shapes, seed = new.parameter_shapes(self.inputs.sizes), self._seed(step, Phase.FINETUNE)
        return lambda name: inherited_tensor(name, shapes[name], old.architecture, new, old.read, pim, seed)

    def _chosen(self, step: int) -> Architecture:
        ablation = self.config.ablation
        if ablation.selects:
            return self.folder.selected_architecture(step, Phase.SELECTION)
        space = self._growth_space(step)
        if ablation.grow_only is not None:
            return space.supernet
        return space.sample(torch.Generator().manual_seed(named_seed(self.config.seed, step, "random candidate")))


class SearchRecipe(Recipe):
    """NAS: searches the same growth space as GrowCLIP, but trains everything from scratch."""

    def run(self, step: int, phase: Phase) -> None:
        seed = self._seed(step, phase)
        if phase is Phase.SEARCH:
            space = self._growth_space(step)
            self._select(step, phase, space, self._spec(space.supernet).initial(seed))
            return
        found = self.config.model.base if step == 1 else self.folder.selected_architecture(step, Phase.SEARCH)
        spec = self._spec(found)
        self._train(step, spec, spec.initial(seed))


class FixedRecipe(Recipe):
    """A model that does not grow: steps start from scratch (TFS, MS-CLIP) or from the previous step's (TWP, SAP)."""

    def __init__(self, run: RunContext) -> None:
        super().__init__(run)
        if run.config.baselines.start is not None and self.folder.is_trained(1, Phase.TRAIN):
            self.model = self._weights(1, Phase.TRAIN).spec  # the checkpoint is no longer needed
        else:
            self.model = fixed_model(run.config, run.inputs)

    def run(self, step: int, phase: Phase) -> None:
        self._train(step, self.model, self._start(step, self._seed(step, phase)))

    def _start(self, step: int, seed: str) -> Weights:
        if step == 1 and self.config.baselines.start is not None:
            from growclip_ds.baselines.spec import clip_weights

            return on_every_rank(partial(clip_weights, self.config.baselines.start))
        if step == 1 or self.config.method in ("tfs", "msclip"):
            return self.model.initial(seed)
        read = self._weights(step - 1, Phase.TRAIN).read
        if self.config.method == "twp":
            return continued(self.model, read)
        return shrunk_and_perturbed(self.model, read, self.pim, seed)


RECIPES: dict[str, type[Recipe]] = {
    "growclip": GrowCLIPRecipe,
    "tfs": FixedRecipe,
    "twp": FixedRecipe,
    "sap": FixedRecipe,
    "msclip": FixedRecipe,
    "nas": SearchRecipe,
}


def fixed_model(config: Config, inputs: RunInputs) -> ModelSpec:
    """The model of TFS, TWP, SAP or MS-CLIP.

    Raises:
        InputError: the checkpoint of `baselines.start` cannot be read, or does not fit the run.
    """
    section, sizes, end_of_text = config.baselines, inputs.sizes, inputs.tokenizer.end_of_text
    if not config.fixed_model_is_clip:
        return GrowCLIPSpec(config.fixed_architecture, sizes, end_of_text)
    from growclip_ds.baselines.clip import clip_config  # `transformers`' models are slow to import
    from growclip_ds.baselines.clip_checkpoint import read_clip_config
    from growclip_ds.baselines.spec import CLIPSpec

    if section.start is None:
        return CLIPSpec(clip_config(config.fixed_architecture, sizes, end_of_text))
    spec = CLIPSpec(on_every_rank(partial(read_clip_config, section.start)))
    where = f"baselines.start, {section.start},"
    if section.architecture not in (None, spec.architecture):
        raise InputError(
            f"{where} has architecture {spec.architecture}, but baselines.architecture is {section.architecture}; "
            "leave the latter out"
        )
    for name in ("context_length", "image_size", "embed_dim"):
        theirs, ours = getattr(spec.sizes, name), getattr(sizes, name)
        if theirs != ours:
            raise InputError(f"{where} has {name} {theirs}, but model.{name} is {ours}; set it to {theirs}")
    if (inputs.tokenizer.vocab_size, end_of_text) != (spec.sizes.vocab_size, spec.end_of_text):
        raise InputError(
            f"{where} has {spec.sizes.vocab_size} tokens with end-of-text token {spec.end_of_text}, but the run's "
            f"tokenizer has {inputs.tokenizer.vocab_size} with {end_of_text}: use the model's own tokenizer "
            "(data.tokenizer.name_or_path)"
        )
    return spec
