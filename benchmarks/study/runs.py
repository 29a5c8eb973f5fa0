"""The runs of the study, in order of importance.

Later runs depend on the results of earlier ones: the learning rate of each method is tuned first, and the fixed models
have the size that GrowCLIP has grown to. So the list is rebuilt whenever a run has finished.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache

from benchmarks.study.results import Results
from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.baselines.clip import clip_config
from growclip_ds.baselines.spec import CLIPSpec
from growclip_ds.config.config import Config
from growclip_ds.model.spec import num_parameters

METHODS = ("growclip", "tfs", "twp", "sap", "msclip", "nas")
REPEATED = METHODS[:4]
SEEDS = (0, 1, 2)
TUNING_SEED = 1000
# The same kinds of sets as reported, with other images: the best model on one kind need not be the best on the other.
TUNING_SETS = ("data/study_tuning/eval/scenes_objects", "data/study_tuning/eval/scenes_retrieval")
# Tuning tries the second and the third rate, then further ones until the best has a worse one on either side.
RATES = {"lamb": (0.0003, 0.001, 0.003, 0.01, 0.03), "adamw": (0.0001, 0.0003, 0.001, 0.003, 0.01)}
# LAMB is the paper's. It changes a matrix by the learning rate times its norm, so undoing β takes ln(1/β) / rate
# iterations. With batches as small as these, which allow no high rate, that is longer than a phase.
MAIN, OTHER = "adamw", "lamb"
GROWN = f"growclip-{MAIN}-{SEEDS[0]}"  # the run that determines the size of the fixed models
GROWING = ("image_blocks", "image_heads", "text_blocks", "text_heads", "shared_blocks")

# Table 5: the parts left out, one more with each row.
ABLATIONS = {
    "without-pim-3": "ablation.pim_selected=false",
    "also-without-gas": "ablation.selection=false",
    "also-without-supernet": "ablation.finetuning=false",
    "without-any": "ablation.pim_supernet=false",
}
INHERITING = {
    "beta-0.1": "growth.beta=0.1",
    "beta-0.6": "growth.beta=0.6",
    "beta-1": "growth.beta=1.0",
    "vectors-too": "growth.blend_vectors=true",
    "fresh-gamma": "growth.fresh_weights=gamma",
}
GENTLER = "beta-0.6"

# The paper's epochs per step: 30, of which the supernet and the sampled subnets take two each.
LONGER = ("epochs.first=30", "epochs.selected=26", "growth.steps=2")


@dataclass(frozen=True)
class StudyRun:
    """A run of the study: its name, which is also its folder's, and its overrides of the study's configuration."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The runs of the study, as far as finished ones determine them.

    Attributes:
        config: the study's configuration, which every run overrides in part.
        results: results of finished runs.
    """

    config: Config
    results: Results

    def runs(self) -> Iterator[StudyRun]:
        """Yields all runs that can be started now, most important first, including finished ones."""
        return iter(dict.fromkeys(self._listed()))

    def _listed(self) -> Iterator[StudyRun]:
        """The runs of `runs`, with duplicates: those of methods with several seeds are listed repeatedly."""
        yield from self._tuning("growclip", MAIN)
        yield from self._tuned("growclip", MAIN, SEEDS[:1])
        for method in REPEATED[1:]:
            yield from self._fixed(method, MAIN, SEEDS[:1])
        yield from self._grown_from_scratch()
        yield from self._ablations(SEEDS[:1])
        yield from self._tuned("growclip", MAIN, SEEDS[1:])
        for method in REPEATED[1:]:
            yield from self._fixed(method, MAIN, SEEDS[1:])
        yield from self._inheriting()
        yield from self._gentler()
        yield from self._fixed("msclip", MAIN, SEEDS[:1])
        yield from self._first_size()
        yield from self._fixed("nas", MAIN, SEEDS[:1])
        yield from self._other_optimizer()
        yield from self._longer(SEEDS)
        yield from self._best("without-pim-3-longer", "growclip", ABLATIONS["without-pim-3"], *LONGER)
        yield from self._ablations(SEEDS[1:])
        yield from self._one_dimension()

    def best_rate(self, method: str, optimizer: str) -> float | None:
        """The learning rate with the highest accuracy on the tuning sets; None until all have been tried."""
        return self._rates(method, optimizer)[1]

    def tuning(self, method: str, optimizer: str) -> dict[float, float]:
        """The accuracy by learning rate, of those that have been tried."""
        names = {rate: _tuning_name(method, optimizer, rate) for rate in RATES[optimizer]}
        return {rate: self.results.accuracy(name, step=2) for rate, name in names.items() if self.results.has(name)}

    def _rates(self, method: str, optimizer: str) -> tuple[tuple[float, ...], float | None]:
        """The learning rates to try, and the best of them, or None if it is not known yet."""
        rates, first, last = RATES[optimizer], 1, 2
        names = [_tuning_name(method, optimizer, rate) for rate in rates]
        while all(map(self.results.has, names[first : last + 1])):
            best = max(range(first, last + 1), key=lambda i: self.results.accuracy(names[i], step=2))
            if best == first > 0:
                first -= 1
            elif best == last < len(rates) - 1:
                last += 1
            else:
                return rates[first : last + 1], rates[best]
        return rates[first : last + 1], None

    def _tuning(self, method: str, optimizer: str, *more: str) -> Iterator[StudyRun]:
        """Two growth steps at each learning rate, evaluated on sets that no other run uses."""
        judged = ("growth.steps=2", f"evaluation.datasets=[{','.join(TUNING_SETS)}]", f"seed={TUNING_SEED}")
        for rate in self._rates(method, optimizer)[0]:
            yield StudyRun(_tuning_name(method, optimizer, rate), (*_recipe(method, optimizer, rate), *more, *judged))

    def _tuned(self, method: str, optimizer: str, seeds: tuple[int, ...], *more: str) -> Iterator[StudyRun]:
        for seed in seeds:
            shown = (optimizer, seed) == (MAIN, SEEDS[0]) and method in REPEATED  # in Figure 1
            curve = ("evaluation.every_epochs=1",) if shown else ()
            yield from self._best(f"{method}-{optimizer}-{seed}", method, *more, *curve, optimizer=optimizer, seed=seed)

    def _best(
        self, name: str, method: str, *more: str, optimizer: str = MAIN, seed: int = SEEDS[0]
    ) -> Iterator[StudyRun]:
        """A run at the method's best learning rate; none until that is known."""
        rate = self.best_rate(method, optimizer)
        if rate is not None:
            yield StudyRun(name, (*_recipe(method, optimizer, rate), *more, f"seed={seed}"))

    def _fixed(self, method: str, optimizer: str, seeds: tuple[int, ...], *more: str) -> Iterator[StudyRun]:
        """A tuned method at GrowCLIP's final size; NAS finds its own."""
        if not self.results.has(GROWN):
            return
        parameters = self.results.parameters(GROWN, self.config.num_growth_steps)
        size = () if method == "nas" else (_architecture(nearest(self._sizes, method, parameters)),)
        yield from self._tuning(method, optimizer, *size)
        yield from self._tuned(method, optimizer, seeds, *size, *more)

    def _first_size(self) -> Iterator[StudyRun]:
        """The fixed models at the size that GrowCLIP starts from."""
        base = nearest(self._sizes, "tfs", self._sizes.parameters_of(self.config.model.base))
        for method in REPEATED[1:]:
            yield from self._best(f"{method}-first-size", method, _architecture(base))

    def _ablations(self, seeds: tuple[int, ...]) -> Iterator[StudyRun]:
        """Table 5, at the second growth step."""
        for seed in seeds:
            left_out: tuple[str, ...] = ()
            for name, override in ABLATIONS.items():
                left_out += (override,)
                yield from self._best(f"{name}-{seed}", "growclip", *left_out, "growth.steps=2", seed=seed)

    def _inheriting(self) -> Iterator[StudyRun]:
        """Other constants of Eq. 5, and other parameters that they apply to, at the second growth step."""
        for name, override in INHERITING.items():
            yield from self._best(f"pim-{name}", "growclip", override, "growth.steps=2")

    def _gentler(self) -> Iterator[StudyRun]:
        """All growth steps with the best β of `_inheriting`, for phases as short as these."""
        for seed in SEEDS:
            yield from self._best(f"growclip-{GENTLER}-{seed}", "growclip", INHERITING[GENTLER], seed=seed)

    def _one_dimension(self) -> Iterator[StudyRun]:
        """Table 9, and the effect of more data alone: the same GrowCLIP trained further without growth."""
        recipe = ("method=twp", "baselines.model=growclip", _architecture(self.config.model.base))
        yield from self._best("grow-nothing", "growclip", *recipe, "growth.steps=2")
        for dimension in GROWING:
            name = f"grow-{dimension.replace('_', '-')}"
            yield from self._best(name, "growclip", f"ablation.grow_only={dimension}", "growth.steps=2")

    def _grown_from_scratch(self) -> Iterator[StudyRun]:
        """Table 6: TFS with the architecture that GrowCLIP has grown to."""
        if self.results.has(GROWN):
            grown = self.results.architecture(GROWN, self.config.num_growth_steps)
            yield from self._best("tfs-of-the-grown", "tfs", "baselines.model=growclip", _architecture(grown))

    def _other_optimizer(self) -> Iterator[StudyRun]:
        """The main methods for two growth steps, and GrowCLIP with β = 1, which the optimizer need not undo."""
        two_steps = "growth.steps=2"
        yield from self._tuning("growclip", OTHER)
        yield from self._tuned("growclip", OTHER, SEEDS[:1], two_steps)
        yield from self._best(f"pim-beta-1-{OTHER}", "growclip", INHERITING["beta-1"], two_steps, optimizer=OTHER)
        for method in REPEATED[1:]:
            yield from self._fixed(method, OTHER, SEEDS[:1], two_steps)

    def _longer(self, seeds: tuple[int, ...]) -> Iterator[StudyRun]:
        """Longer steps: does the selected model need more epochs to recover the initial cost of inheriting?"""
        if self.results.has(GROWN):
            parameters = self.results.parameters(GROWN, self.config.num_growth_steps)
            size = _architecture(nearest(self._sizes, "tfs", parameters))
            for seed in seeds:
                yield from self._best(f"growclip-longer-{seed}", "growclip", *LONGER, seed=seed)
                for method in REPEATED[1:]:
                    yield from self._best(f"{method}-longer-{seed}", method, size, *LONGER, seed=seed)

    @property
    def _sizes(self) -> ModelSizes:
        return self.config.model.sizes(self.config.data.tokenizer.vocab_size or 0)


@lru_cache
def nearest(sizes: ModelSizes, method: str, parameters: int) -> Architecture:
    """The usual architecture of a fixed model whose number of parameters is nearest to `parameters`.

    Usual architectures have equally many blocks in both towers, between a quarter as many heads and as many, and in the
    text tower as many heads or one fewer.
    """

    def usual() -> Iterator[Architecture]:
        for blocks in range(1, 25):
            for heads in range((blocks + 3) // 4, blocks + 1):
                if method == "msclip":
                    yield Architecture(0, 0, heads, 0, heads, blocks)
                else:
                    yield from (Architecture(0, blocks, heads, blocks, less, 0) for less in {heads, max(heads - 1, 1)})

    # GrowCLIP's count, which adds a stem to CLIP's, preselects those worth counting exactly.
    near = [one for one in usual() if parameters / 2 <= sizes.parameters_of(one) <= 3 * parameters]
    return min(near, key=lambda one: (abs(fixed_parameters(sizes, method, one) - parameters), one))


def fixed_parameters(sizes: ModelSizes, method: str, architecture: Architecture) -> int:
    """Number of parameters of a fixed model: MS-CLIP uses GrowCLIP's modules, the others are `transformers`' CLIP."""
    if method == "msclip":
        return sizes.parameters_of(architecture)
    return num_parameters(CLIPSpec(clip_config(architecture, sizes, sizes.vocab_size - 1)))


def _tuning_name(method: str, optimizer: str, rate: float) -> str:
    return f"tune-{method}-{optimizer}-{rate}"


def _recipe(method: str, optimizer: str, rate: float) -> tuple[str, ...]:
    return f"method={method}", f"training.optimizer={optimizer}", f"training.learning_rate={rate}"


def _architecture(architecture: Architecture) -> str:
    fields = ", ".join(f"{name}: {value}" for name, value in asdict(architecture).items())
    return f"baselines.architecture={{{fields}}}"
