"""Unfinished, odd and damaged runs."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from growclip_ds.cli.program import main
from growclip_ds.errors import InputError
from growclip_ds.evaluation.stored import ResultStore, folder_beside
from growclip_ds.evaluation.subject import find_subject
from growclip_ds.monitor.words import SYMBOLS
from growclip_ds.reporting import make_report, read_runs
from growclip_ds.reporting.comparison import compare
from growclip_ds.reporting.report import make_tables
from growclip_ds.results import result_from_json
from growclip_ds.run.folder import RunFolder
from tests.evaluation.models import write_model
from tests.reporting.made_up import (
    classified,
    retrieved,
    write_config,
    write_fixed,
    write_growth,
    write_phase,
)


def cells_of(name: str, *runs: Path) -> list[list[str]]:
    (table,) = [table for table in make_tables(compare(read_runs(runs))) if table.name == name]
    return table.cells()


def test_an_unfinished_run_is_reported_as_far_as_it_is(tmp_path: Path) -> None:
    run = write_growth(tmp_path / "run", (10.0, 20.0), ablation={"pim_selected": False})
    shutil.rmtree(run / "step_2" / "train")
    report = make_report(read_runs([run]))
    progress = "1 of 2 growth steps and finetune, selection of step 2"
    assert report.notes == [f"run is not finished: {progress}."]
    assert cells_of("runs", run) == [["run", "GrowCLIP without PIM@3", "0", progress]]
    assert len(cells_of("growth_steps", run)) == 1
    assert [row[1:3] for row in cells_of("costs_of_phases", run)] == [
        ["1", "train"],
        ["2", "finetune"],
        ["2", "selection"],
    ]


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    report = make_report(read_runs([write_config(tmp_path / "run")]))
    assert [table.name for table in report.tables] == ["runs"]
    assert report.notes == ["run is not finished: 0 of 2 growth steps."]


def test_a_run_without_evaluation_sets(tmp_path: Path) -> None:
    run = write_config(tmp_path / "run", steps=1)
    write_phase(run, 1)
    other = write_fixed(tmp_path / "other", "tfs", [9.0], steps=1)
    report = make_report(read_runs([run]))
    tables = {table.name: table for table in report.tables}
    assert tables.keys() == {"runs", "growth_steps", "costs", "costs_of_phases"}
    assert len(tables["growth_steps"].notes) == 1
    assert tables["costs"].notes[0].startswith("Costs are summed")
    assert len(report.notes) == 1
    assert report.notes[0].startswith("No accuracies: no growth step was evaluated")
    assert cells_of("methods", run, other) == [["GrowCLIP", "1", "–"], ["TFS", "1", "9.0"]]


class Set:
    """As far as the place of its results goes by it."""

    def __init__(self, name: str, identity: str = "") -> None:
        self.name, self.identity = name, identity


def keep(run: Path, step: int, result: dict[str, Any], precision: str = "fp32", digest: str | None = None) -> Path:
    """A result beside a step's weights, as `growclip evaluate` leaves it; returns its file."""
    weights = run / f"step_{step}/train/weights"
    store = ResultStore(folder_beside(weights), digest or find_subject(weights).digest, "tokens", precision)
    one = Set(result["dataset"], json.dumps(result))
    store.save(one, result_from_json(result))
    return store.file(one)


def test_sets_evaluated_since_are_reported(tmp_path: Path) -> None:
    run = write_config(tmp_path / "run")
    for step, accuracy in ((1, 10.0), (2, 20.0)):
        write_phase(run, step, accuracy=accuracy)
        write_model(run / f"step_{step}/train/weights", seed=step)
        keep(run, step, classified("later", accuracy + 20))
    keep(run, 2, retrieved("pairs", (7, 8, 9), (5, 6, 7)))
    os.utime(keep(run, 2, classified("objects", 24.0)), ns=(1, 1))
    os.utime(keep(run, 2, classified("objects", 22.0)), ns=(2, 2))  # the latest of this name
    assert [row[6:] for row in cells_of("growth_steps", run)] == [
        ["10.0", "30.0", "–", "20.0"],
        ["22.0", "40.0", "6.0", "31.0"],
    ]
    assert cells_of("methods", run) == [["GrowCLIP", "1", "20.0", "31.0"]]
    written = make_report(read_runs([run])).to_json()
    (table,) = [table for table in written["tables"] if table["name"] == "growth_steps"]
    assert [row[table["columns"].index("later")] for row in table["rows"]] == [30.0, 40.0]


def test_results_of_other_weights_are_not_reported(tmp_path: Path) -> None:
    run = write_config(tmp_path / "run", steps=1)
    write_phase(run, 1, accuracy=10.0)
    weights = write_model(run / "step_1/train/weights", seed=1)
    keep(run, 1, classified("objects", 99.0), digest="another model's")
    keep(run, 1, classified("objects", 98.0), precision="bf16")
    damaged = keep(run, 1, classified("objects", 97.0))
    damaged.write_text(damaged.read_text().replace("97.0", "970.0"))
    assert [row[6:] for row in cells_of("growth_steps", run)] == [["10.0"]]
    theirs = keep(run, 1, classified("objects", 12.0))
    assert [row[6:] for row in cells_of("growth_steps", run)] == [["12.0"]]
    shutil.rmtree(weights)  # without which nobody knows whose results these are
    assert theirs.exists()
    assert [row[6:] for row in cells_of("growth_steps", run)] == [["10.0"]]


def test_means_are_over_the_sets_that_all_have(tmp_path: Path) -> None:
    first = write_config(tmp_path / "first", steps=1)
    write_phase(first, 1, evaluation=[classified("a", 10.0), classified("b", 30.0)])
    second = write_config(tmp_path / "second", steps=1, method="tfs")
    write_phase(second, 1, evaluation=[classified("a", 11.0), retrieved("r", (1, 2, 3), (1, 2, 3))])
    report = make_report(read_runs([first, second]))
    assert len(report.notes) == 2
    assert re.search(r"second .* not evaluated on b\. Means are over the sets common to all: a\.", report.notes[0])
    assert re.search(r"first .* not evaluated on r\.", report.notes[1])
    assert cells_of("methods", first, second) == [["GrowCLIP", "1", "10.0"], ["TFS", "1", "11.0"]]
    assert [row[6:] for row in cells_of("growth_steps", first, second)] == [["10.0", "30.0", "–"], ["11.0", "–", "1.0"]]


def test_notes_of_what_makes_runs_unlike(tmp_path: Path) -> None:
    first = write_fixed(tmp_path / "a" / "run", "tfs", [9.0], steps=1)
    second = write_fixed(tmp_path / "b" / "run", "tfs", [9.5], steps=1)
    third = write_config(tmp_path / "third", steps=1)
    write_phase(third, 1, accuracy=8.0, samples=400)
    data, seeds = compare(read_runs([first, second, third])).notes
    assert data.startswith("Growth step 1 of a/run had 500 samples, that of third 400")
    assert seeds.startswith("The runs a/run and b/run have the same configuration and seed, 0")


def damage(text: str) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        (run / "step_1/train/phase.json").write_text(text)

    return write


def change(**values: Any) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        file = run / "step_1/train/phase.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return edit


def without(key: str) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        file = run / "step_1/train/phase.json"
        record = json.loads(file.read_text())
        del record[key]
        file.write_text(json.dumps(record))

    return edit


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, r"there is no folder \S*/run; name"),
        (lambda run: (run / "config.yaml").unlink(), r"run is not a run: it has no config\.yaml"),
        (lambda run: (run / "config.yaml").write_text("seed: [1\n"), r"config\.yaml, line 2"),
        (lambda run: (run / "config.yaml").write_text(yaml.safe_dump({"method": "magic"})), r"config\.yaml.*method"),
        (damage("{"), r"step_1/train/phase\.json cannot be read"),
        (damage("[]"), r"step_1/train/phase\.json is damaged: .*; copy it again, or remove it and start the run again"),
        (without("parameters"), r"phase\.json is damaged: no 'parameters'; copy it again"),
        (change(seconds="long"), r"phase\.json is damaged: seconds is 'long'"),
        (change(seconds=float("nan")), r"phase\.json is damaged: seconds is nan"),
        (change(samples=0), r"phase\.json is damaged: samples is 0"),
        (change(model={"kind": "growclip"}), r"phase\.json is damaged: no 'architecture'"),
        (change(model={"architecture": {"image_blocks": 1}}), r"phase\.json is damaged: .*missing"),
        (change(model="ViT"), r"phase\.json is damaged"),
        (change(evaluation=[{"dataset": "objects"}]), r"phase\.json is damaged: no 'type'"),
        (change(evaluation=[classified("objects", 120.0)]), r"the accuracy on objects is 120\.0 percent"),
        (change(curve=[{"iteration": 5}]), r"phase\.json is damaged: no 'evaluation'"),
        (change(candidates=[{"accuracy": 1.0}]), r"phase\.json is damaged: no 'parameters'"),
        (change(candidates=[{"parameters": 9, "accuracy": 1.0}]), r"phase\.json is damaged: no 'architecture'"),
        (change(device=7), r"phase\.json is damaged: device is 7"),
        (change(ranks=True), r"phase\.json is damaged: ranks is True"),
    ],
)
def test_what_is_no_run_or_damaged_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], Any], words: str
) -> None:
    run = write_fixed(tmp_path / "run", "tfs", [9.0], steps=1)
    spoil(run)
    assert main(["report", str(run), "--output", str(tmp_path / "report")]) == 2
    printed = capsys.readouterr()
    assert re.search(words, printed.err.replace("\n", " "))
    assert "Traceback" not in printed.err
    assert not (tmp_path / "report").exists()


def test_runs_with_nothing_in_common_are_named(tmp_path: Path) -> None:
    runs = []
    for name, evaluation in (("one", [classified("a", 1.0)]), ("two", [classified("b", 1.0)])):
        runs.append(write_config(tmp_path / name, steps=1))
        write_phase(runs[-1], 1, evaluation=evaluation)
    with pytest.raises(InputError, match="different sets, one on a; two on b: none is common to all"):
        make_report(read_runs(runs))


def test_different_sets_of_one_name_are_named(tmp_path: Path) -> None:
    runs = []
    for name, samples in (("one", 960), ("two", 200)):
        runs.append(write_config(tmp_path / name, steps=1))
        write_phase(runs[-1], 1, evaluation=[classified("a", 1.0, samples)])
    with pytest.raises(InputError, match=r"'a' has 960 images to classify in one, but 200 images to classify in two"):
        make_report(read_runs(runs))


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    run = write_fixed(tmp_path / "run", "tfs", [9.0], steps=1)
    with pytest.raises(InputError, match="given twice"):
        read_runs([run, tmp_path / "x" / ".." / "run"])


def test_an_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_fixed(tmp_path / "run", "tfs", [9.0], steps=1)
    (tmp_path / "file").write_text("")
    assert main(["report", str(run), "--output", str(tmp_path / "file")]) == 2
    assert re.fullmatch(
        r"growclip: error: \S*/file\S*: cannot be written \(.*\); name another place\n", capsys.readouterr().err
    )


def test_a_script_reads_the_tables_from_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_fixed(tmp_path / "run", "tfs", [9.0], steps=1)
    assert main(["report", str(run), "--output", str(tmp_path / "report"), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["tables"]


def test_a_step_that_came_with_the_model_may_not_know_its_samples(tmp_path: Path) -> None:
    run = write_config(tmp_path / "run")
    write_phase(run, 1, samples=0, iterations=0, seconds=0.0, start="exported")
    write_phase(run, 2, accuracy=9.0)
    first, second = cells_of("costs", run)
    assert first[4:] == ["not recorded"] * 6
    assert second[4:6] == ["1.0", "1,000"]


def test_a_run_that_was_trained(finished_run: RunFolder) -> None:
    """Figures of its course need a run that was evaluated during it: tests/pipeline/test_pipeline.py has one."""
    report = make_report(read_runs([finished_run.path]))
    tables = {table.name: table for table in report.tables}
    assert not report.notes
    steps = tables["growth_steps"]
    assert [row[:4] for row in steps.cells()] == [["1", "GrowCLIP", "a run", "48"], ["2", "GrowCLIP", "a run", "96"]]
    assert [row[0] for row in tables["candidates_of_one_dimension"].rows] == list(SYMBOLS)
    assert [row[1:3] for row in tables["costs_of_phases"].cells()] == [
        ["1", "train"],
        ["2", "finetune"],
        ["2", "selection"],
        ["2", "train"],
    ]
    costs = [
        dict(zip([column.title for column in tables["costs"].columns], row, strict=True))
        for row in tables["costs"].rows
    ]
    assert [row["pairs seen"].mean for row in costs] == [2 * 48, 4 * 96]
    assert [row["epochs"].mean for row in costs] == [2.0, 4.0]
    assert all(row["ran on"] == "2 × CPU, torch kernels" for row in costs)
    assert costs[1]["FLOPs"].mean > costs[0]["FLOPs"].mean > 0
