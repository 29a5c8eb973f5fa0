"""The study's questions as tables, from the runs finished so far."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from benchmarks.study.runs import (
    ABLATIONS,
    GENTLER,
    GROWING,
    GROWN,
    INHERITING,
    MAIN,
    METHODS,
    OTHER,
    RATES,
    REPEATED,
    SEEDS,
    Plan,
)
from growclip_ds.reporting.groups import METHODS as TITLES
from growclip_ds.reporting.table import Column, Spread, Table, count_column, number_column, text_column

SETS = {"scenes_objects": "objects, top-1", "scenes_retrieval": "retrieval, R@1"}


def tables(plan: Plan) -> Iterator[Table]:
    """Yields all tables of the study."""
    gentler = {f"GrowCLIP, {GENTLER}": _seeds(f"growclip-{GENTLER}")}
    yield _learning_rates(plan)
    yield _steps(plan, "methods", "Methods, all at the size that GrowCLIP ends with", _methods(MAIN) | gentler)
    yield _sets(plan, _methods(MAIN) | gentler)
    first = {"GrowCLIP": _seeds(f"growclip-{MAIN}")} | {TITLES[m]: [f"{m}-first-size"] for m in REPEATED[1:]}
    yield _steps(plan, "first_size", "Fixed models at the size that GrowCLIP starts with", first)
    yield _steps(plan, "optimizers", "With LAMB", _methods(OTHER) | {"GrowCLIP, beta-1": [f"pim-beta-1-{OTHER}"]})
    left_out = {name.replace("-", " "): [f"{name}-{seed}" for seed in SEEDS] for name in ABLATIONS}
    yield _steps(
        plan, "ablations", "What parts of a growth step bring (Table 5)", {"all": _seeds(f"growclip-{MAIN}")} | left_out
    )
    settings = {"as it is": [GROWN]} | {name: [f"pim-{name}"] for name in INHERITING}
    yield _steps(plan, "inheriting", "Settings of Eq. 5", settings)
    longer = {TITLES[method]: _seeds(f"{method}-longer") for method in REPEATED}
    longer |= {"GrowCLIP without pim 3": ["without-pim-3-longer"]}
    yield _steps(plan, "longer", "30 epochs a step instead of 12", longer)
    dimensions = {name: [f"grow-{name.replace('_', '-')}"] for name in ("nothing", *GROWING)}
    yield _steps(plan, "dimensions", "Growth of one dimension (Table 9)", dimensions)
    grown = {"GrowCLIP": [GROWN], "TFS of what it has grown to": ["tfs-of-the-grown"]}
    yield _steps(plan, "from_scratch", "The grown architecture from scratch (Table 6)", grown)
    yield _time(plan)


def _methods(optimizer: str) -> dict[str, list[str]]:
    return {TITLES[method]: _seeds(f"{method}-{optimizer}") for method in METHODS}


def _seeds(name: str) -> list[str]:
    return [f"{name}-{seed}" for seed in SEEDS]


def _learning_rates(plan: Plan) -> Table:
    rates = sorted({rate for ladder in RATES.values() for rate in ladder})
    rows = []
    for optimizer in RATES:
        for method in METHODS:
            found = plan.tuning(method, optimizer)
            if found:
                rows.append([TITLES[method], optimizer, *map(found.get, rates), plan.best_rate(method, optimizer)])
    columns = [text_column("method"), text_column("optimizer")]
    columns += [number_column(f"{rate:g}", 1) for rate in rates]
    columns.append(Column("taken", lambda rate: f"{rate:g}"))
    note = "After two growth steps with a seed of their own, accuracy on sets of their own."
    return Table("learning_rates", "Learning rates", columns, rows, [note])


def _steps(plan: Plan, name: str, title: str, groups: dict[str, Sequence[str]]) -> Table:
    """Accuracy after each growth step, with one row per group of runs that differ only in the seed."""
    steps = range(1, plan.config.num_growth_steps + 1)
    rows = []
    for label, runs in groups.items():
        there = [run for run in runs if plan.results.has(run)]
        if there:
            sizes = Spread.of(plan.results.parameters(run, plan.results.steps(run)) / 1e6 for run in there)
            rows.append([label, len(there), sizes, *(Spread.of(_accuracies(plan, there, step)) for step in steps)])
    columns = [text_column(""), count_column("runs"), number_column("parameters at the end (M)", 2)]
    columns += [number_column(f"step {step}", 1) for step in steps]
    return Table(name, title, columns, rows)


def _accuracies(plan: Plan, runs: Iterable[str], step: int) -> list[float | None]:
    return [plan.results.accuracy(run, step) if step <= plan.results.steps(run) else None for run in runs]


def _sets(plan: Plan, groups: dict[str, list[str]]) -> Table:
    rows = []
    last = plan.config.num_growth_steps
    for label, runs in groups.items():
        there = [run for run in runs if plan.results.has(run)]
        if there:
            of_sets = (Spread.of(plan.results.figures(run, last).get(name) for run in there) for name in SETS)
            rows.append([label, *of_sets])
    columns = [text_column(""), *(number_column(title, 1) for title in SETS.values())]
    return Table("sets", f"The same by set, after step {last}", columns, rows)


def _time(plan: Plan) -> Table:
    rows = []
    for label, runs in _methods(MAIN).items():
        there = [run for run in runs if plan.results.has(run)]
        if there:
            minutes = Spread.of(plan.results.seconds(run) / 60 for run in there)
            rows.append([label, minutes, Spread.of(plan.results.pairs_seen(run) for run in there)])
    columns = [text_column(""), number_column("minutes", 1), number_column("pairs seen", 0)]
    note = "One process with one thread; two ran at a time, and at times other work, so minutes say little."
    return Table("time", "What a run takes", columns, rows, [note])
