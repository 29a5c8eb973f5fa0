"""The list of the study's runs: what it asks for is valid, and follows from what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.study.results import Results
from benchmarks.study.runs import GROWN, MAIN, METHODS, RATES, Plan, fixed_parameters, nearest
from benchmarks.study.tables import tables
from growclip_ds.architecture import Architecture
from growclip_ds.config.config import load_config
from growclip_ds.growth.phases import Phase
from growclip_ds.run.folder import RunFolder
from tests.records import classified, phase_record, retrieved

CONFIG = "configs/study.yaml"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(load_config(CONFIG), Results(tmp_path / "runs"))


def finish(plan: Plan, name: str, accuracy: float = 50.0, steps: int = 3) -> None:
    run = RunFolder(plan.results.path / name)
    run.path.mkdir(parents=True)
    run.config_file.write_text("")
    for step in range(1, steps + 1):
        record = phase_record(
            step,
            parameters=2_000_000,
            architecture=Architecture(0, 4, 2, 3, 2, 1),
            evaluation=(classified("scenes_objects", accuracy - 10), retrieved("scenes_retrieval", accuracy + 10)),
        )
        run.finish(record)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, list[str]]:
    """A study of which no run is left, and the names of its runs in order."""
    plan, order = Plan(load_config(CONFIG), Results(tmp_path_factory.mktemp("study") / "runs")), []
    while name := next((run.name for run in plan.runs() if not plan.results.has(run.name)), None):
        order.append(name)
        finish(plan, name)
    return plan, order


def test_every_run_has_valid_settings_and_a_name_of_its_own(finished: tuple[Plan, list[str]]) -> None:
    plan, _ = finished
    runs = list(plan.runs())
    assert len({run.name for run in runs}) == len(runs)
    methods = set()
    for run in runs:
        config = load_config(CONFIG, run.overrides)
        methods.add(config.method)
        judged_on, selects = set(config.evaluation.datasets), config.selection.dataset
        assert selects not in judged_on
        assert run.name.startswith("tune-") == judged_on.isdisjoint(plan.config.evaluation.datasets)
    assert methods == set(METHODS)


def test_nothing_comes_before_what_it_rests_on(finished: tuple[Plan, list[str]]) -> None:
    _, order = finished
    assert order.index(GROWN) < min(order.index(name) for name in order if "tfs" in name)
    for method in METHODS:
        tuned = [i for i, name in enumerate(order) if name.startswith(f"tune-{method}-{MAIN}")]
        assert max(tuned) < order.index(f"{method}-{MAIN}-0")


@pytest.mark.parametrize(
    ("accuracies", "best", "tried"),
    [
        ({0.0003: 20, 0.001: 30, 0.003: 25}, 0.001, 3),
        ({0.0003: 20, 0.001: 30, 0.003: 35, 0.01: 31}, 0.003, 4),
        ({0.0003: 20, 0.001: 30, 0.003: 35, 0.01: 36}, 0.01, 4),
        ({0.0003: 20, 0.001: 10, 0.0001: 18}, 0.0003, 3),
    ],
)
def test_tuning_goes_on_while_the_best_rate_is_at_the_edge(
    plan: Plan, accuracies: dict[float, float], best: float, tried: int
) -> None:
    rates = []
    while plan.best_rate("growclip", MAIN) is None:
        name = next(run.name for run in plan.runs() if not plan.results.has(run.name))
        rates.append(float(name.removeprefix(f"tune-growclip-{MAIN}-")))
        finish(plan, name, accuracies[rates[-1]])
    assert plan.best_rate("growclip", MAIN) == best
    assert len(rates) == tried
    assert set(rates) <= set(RATES[MAIN])


def test_accuracy_is_the_mean_of_the_sets(plan: Plan) -> None:
    finish(plan, "one", accuracy=40.0)
    assert plan.results.accuracy("one", step=2) == pytest.approx((30 + (40 + 60) / 2) / 2)


@pytest.mark.parametrize("method", ["tfs", "msclip"])
def test_fixed_models_have_the_size_asked_for(plan: Plan, method: str) -> None:
    sizes = plan.config.model.sizes(1024)
    for parameters in (5e5, 1.7e6, 1e7):
        found = nearest(sizes, method, int(parameters))
        assert fixed_parameters(sizes, method, found) == pytest.approx(parameters, rel=0.25)
        assert bool(found.shared_blocks) == (method == "msclip")


def test_what_is_kept_of_a_run_is_what_reports_read(plan: Plan, tmp_path: Path) -> None:
    finish(plan, "made")
    run = RunFolder(plan.results.path / "made")
    run.deepspeed_file.write_text("{}")
    run.data_file.write_text("[]")
    run.weights(2, Phase.TRAIN).mkdir()
    (run.weights(2, Phase.TRAIN) / "weights.safetensors").write_bytes(b"large")
    plan.results.keep("kept", run)
    kept = RunFolder(plan.results.path / "kept")
    assert kept.record(3, Phase.TRAIN) == run.record(3, Phase.TRAIN)
    assert not list(kept.path.rglob("*.safetensors"))
    assert plan.results.has("kept")


def test_tables_hold_what_is_finished(plan: Plan) -> None:
    for seed, accuracy in enumerate((40.0, 44.0)):
        finish(plan, f"growclip-{MAIN}-{seed}", accuracy)
    finish(plan, "without-pim-3-0", 30.0, steps=2)
    finish(plan, "tune-growclip-lamb-0.001", 20.0, steps=2)
    found = {table.name: table.cells() for table in tables(plan)}
    assert found["methods"] == [["GrowCLIP", "2", "2.00 ± 0.00 (2)", *["42.0 ± 2.8 (2)"] * 3]]
    assert found["sets"] == [["GrowCLIP", "32.0 ± 2.8 (2)", "52.0 ± 2.8 (2)"]]
    assert found["ablations"][1] == ["without pim 3", "1", "2.00", "30.0", "30.0", "–"]
    assert found["learning_rates"] == [["GrowCLIP", "lamb", "–", "–", "20.0", "–", "–", "–", "–"]]
    assert found["time"] == [["GrowCLIP", "3.0 ± 0.0 (2)", "3,000 ± 0 (2)"]]
    assert found["optimizers"] == []
