"""The runs of the study, in the order in which they are worth having.

Which they are depends on what earlier ones found: the learning rate of each method is tuned first, and the fixed models
have the size that GrowCLIP has grown to. So the list is made anew whenever a run has ended.
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
# As those that are reported, of other pictures: what names objects best need not find captions best.
TUNING_SETS = ("data/study_tuning/eval/scenes_objects", "data/study_tuning/eval/scenes_retrieval")
# Tuning tries the second and the third, and further ones until the best has a worse one on either side.
RATES = {"lamb": (0.0003, 0.001, 0.003, 0.01, 0.03), "adamw": (0.0001, 0.0003, 0.001, 0.003, 0.01)}
# LAMB is the paper's. It changes a matrix by the learning rate times its norm, so to undo β takes it ln(1/β) / rate
# iterations: at batches as small as these, which bear no high rate, longer than a phase.
MAIN, OTHER = "adamw", "lamb"
GROWN = f"growclip-{MAIN}-{SEEDS[0]}"  # the run that says how large the fixed models are
GROWING = ("image_blocks", "image_heads", "text_blocks", "text_heads", "shared_blocks")

# Table 5: what is left out, one more with each row.
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

# The paper's epochs of a step: 30, of which the supernet and sampled subnets take two each.
LONGER = ("epochs.first=30", "epochs.selected=26", "growth.steps=2")


@dataclass(frozen=True)
class StudyRun:
    """A run: its name, which is its folder's, and what it changes in the study's configuration."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The runs, as far as they are known.

    Attributes:
        config: that all runs change something in.
        results: of finished runs.
    """

    config: Config
    results: Results

    def runs(self) -> Iterator[StudyRun]:
        """All runs that can be made now, best first; those that are finished among them."""
        return iter(dict.fromkeys(self._listed()))

    def _listed(self) -> Iterator[StudyRun]:
        """What `runs` gives, some twice: methods with more than one seed come by again."""
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
        """The learning rate with the highest accuracy on the tuning sets, once all have been tried."""
        return self._rates(method, optimizer)[1]

    def tuning(self, method: str, optimizer: str) -> dict[float, float]:
        """The accuracy at each learning rate that has been tried."""
        names = {rate: _tuning_name(method, optimizer, rate) for rate in RATES[optimizer]}
        return {rate: self.results.accuracy(name, step=2) for rate, name in names.items() if self.results.has(name)}

    def _rates(self, method: str, optimizer: str) -> tuple[tuple[float, ...], float | None]:
        """The learning rates to try, and the best of them if it is known."""
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
        """Two growth steps at each learning rate, judged on sets that nothing else uses."""
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
        """A run at the method's best learning rate, once that is known."""
        rate = self.best_rate(method, optimizer)
        if rate is not None:
            yield StudyRun(name, (*_recipe(method, optimizer, rate), *more, f"seed={seed}"))

    def _fixed(self, method: str, optimizer: str, seeds: tuple[int, ...], *more: str) -> Iterator[StudyRun]:
        """A method, tuned, at the size that GrowCLIP has grown to at the end; NAS finds its own."""
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
        """Other constants of Eq. 5, and what they apply to; at the second growth step."""
        for name, override in INHERITING.items():
            yield from self._best(f"pim-{name}", "growclip", override, "growth.steps=2")

    def _gentler(self) -> Iterator[StudyRun]:
        """All growth steps with the best β of `_inheriting`, for phases as short as these."""
        for seed in SEEDS:
            yield from self._best(f"growclip-{GENTLER}-{seed}", "growclip", INHERITING[GENTLER], seed=seed)

    def _one_dimension(self) -> Iterator[StudyRun]:
        """Table 9, and what more data alone would have brought: the same GrowCLIP trained on."""
        recipe = ("method=twp", "baselines.model=growclip", _architecture(self.config.model.base))
        yield from self._best("grow-nothing", "growclip", *recipe, "growth.steps=2")
        for dimension in GROWING:
            name = f"grow-{dimension.replace('_', '-')}"
            yield from self._best(name, "growclip", f"ablation.grow_only={dimension}", "growth.steps=2")

    def _grown_from_scratch(self) -> Iterator[StudyRun]:
        """Table 6: TFS of what GrowCLIP has grown to."""
        if self.results.has(GROWN):
            grown = self.results.architecture(GROWN, self.config.num_growth_steps)
            yield from self._best("tfs-of-the-grown", "tfs", "baselines.model=growclip", _architecture(grown))

    def _other_optimizer(self) -> Iterator[StudyRun]:
        """The main methods, two growth steps, and GrowCLIP with nothing for the optimizer to undo."""
        two_steps = "growth.steps=2"
        yield from self._tuning("growclip", OTHER)
        yield from self._tuned("growclip", OTHER, SEEDS[:1], two_steps)
        yield from self._best(f"pim-beta-1-{OTHER}", "growclip", INHERITING["beta-1"], two_steps, optimizer=OTHER)
        for method in REPEATED[1:]:
            yield from self._fixed(method, OTHER, SEEDS[:1], two_steps)

    def _longer(self, seeds: tuple[int, ...]) -> Iterator[StudyRun]:
        """Whether the selected model needs more epochs than it has here to make good what inheriting costs at first."""
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
    """Of a fixed model's usual architectures the one whose size is nearest: as many blocks in both towers, a quarter as
    many heads to as many, and in the text's tower perhaps one head less.
    """

    def usual() -> Iterator[Architecture]:
        for blocks in range(1, 25):
            for heads in range((blocks + 3) // 4, blocks + 1):
                if method == "msclip":
                    yield Architecture(0, 0, heads, 0, heads, blocks)
                else:
                    yield from (Architecture(0, blocks, heads, blocks, less, 0) for less in {heads, max(heads - 1, 1)})

    # GrowCLIP's count, which has a stem more than CLIP's, says which are worth being counted.
    near = [one for one in usual() if parameters / 2 <= sizes.parameters_of(one) <= 3 * parameters]
    return min(near, key=lambda one: (abs(fixed_parameters(sizes, method, one) - parameters), one))


def fixed_parameters(sizes: ModelSizes, method: str, architecture: Architecture) -> int:
    """Of a fixed model: MS-CLIP is made of GrowCLIP's modules, the others are `transformers`' CLIP."""
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
