"""The cells of every table, from runs with known figures."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.costs.flops import clip_forward_flops, forward_flops
from growclip_ds.reporting import read_runs
from growclip_ds.reporting.comparison import compare
from growclip_ds.reporting.report import make_tables
from growclip_ds.reporting.table import Spread, Table
from tests.reporting.made_up import (
    BASE,
    BATCH,
    GROWN,
    GROWN_CLIP,
    SUPERNET,
    candidate,
    classified,
    retrieved,
    write_config,
    write_fixed,
    write_growth,
    write_phase,
)


def tables_of(*runs: Path) -> dict[str, Table]:
    return {table.name: table for table in make_tables(compare(read_runs(runs)))}


def head(table: Table) -> list[str]:
    return [column.title for column in table.columns]


def test_spread_is_the_deviation_of_a_sample() -> None:
    assert Spread.of([1.0, 2.0, None, 6.0]) == Spread(3.0, pytest.approx(math.sqrt(7.0)), 3)
    assert Spread.of([4.0, None]) == Spread(4.0, None, 1)
    assert Spread.of([None]) is None


def test_growth_steps(tmp_path: Path) -> None:
    run = write_config(tmp_path / "run")
    write_phase(run, 1, evaluation=[classified("a", 10.0), classified("b", 15.0), retrieved("r", (3, 4, 5), (1, 2, 3))])
    after = [classified("a", 21.04), classified("b", 30.0), retrieved("r", (7, 8, 9), (5, 6, 7))]
    write_phase(run, 2, evaluation=after, architecture=GROWN, parameters=1_234_567)
    table = tables_of(run)["growth_steps"]
    assert head(table)[3:] == ["samples", "parameters (M)", "architecture", "a", "b", "r", "mean of 2"]
    assert table.cells() == [
        ["1", "GrowCLIP", "run", "500", "0.44", "(0, 1, 1, 1, 1, 0)", "10.0", "15.0", "2.0", "12.5"],
        ["2", "GrowCLIP", "run", "1,000", "1.23", "(1, 2, 1, 1, 1, 0)", "21.0", "30.0", "6.0", "25.5"],
    ]


def test_runs_with_other_seeds_make_mean_and_spread(tmp_path: Path) -> None:
    runs = [
        write_fixed(tmp_path / "tfs-0", "tfs", [8.0], steps=2),
        *(write_growth(tmp_path / f"g{seed}", (10.0, 20.0 + seed), seed) for seed in range(3)),
        write_fixed(tmp_path / "tfs-1", "tfs", [9.0, 18.0], seed=1),
    ]
    tables = tables_of(*runs)
    assert tables["methods"].title == "Methods by growth step: top-1, objects (%)"
    assert tables["methods"].cells() == [
        ["GrowCLIP", "3", "10.0 ± 0.0 (3)", "21.0 ± 1.0 (3)"],
        ["TFS", "2", "8.5 ± 0.7 (2)", "18.0"],  # tfs-0 has not come to step 2
    ]
    assert [row[1:3] for row in tables["growth_steps"].cells()][-4:] == [
        ["GrowCLIP", "g0"],
        ["GrowCLIP", "g1"],
        ["GrowCLIP", "g2"],
        ["TFS", "tfs-1"],
    ]


def test_retrieval(tmp_path: Path) -> None:
    runs = []
    for seed, shift in enumerate((0.0, 2.0)):
        run = write_config(tmp_path / f"run{seed}", seed, steps=1)
        recalls = retrieved("r", (3 + shift, 40, 50), (1, 20, 30 + shift))
        write_phase(run, 1, evaluation=[recalls])
        runs.append(run)
    tables = tables_of(*runs)
    assert head(tables["retrieval"]) == [
        "step",
        "method",
        *(f"r i→t R@{k}" for k in (1, 5, 10)),
        *(f"r t→i R@{k}" for k in (1, 5, 10)),
    ]
    assert tables["retrieval"].cells() == [
        [
            *("1", "GrowCLIP"),
            *("4.0 ± 1.4 (2)", "40.0 ± 0.0 (2)", "50.0 ± 0.0 (2)"),
            *("1.0 ± 0.0 (2)", "20.0 ± 0.0 (2)", "31.0 ± 1.4 (2)"),
        ]
    ]
    assert tables["methods"].title == "Methods by growth step: R@1, r (%)"
    assert tables["methods"].rows[0][2].mean == 2.5  # of both directions


def test_ablations_say_which_switches_were_on(tmp_path: Path) -> None:
    ablated = {"pim_selected": False, "selection": False}
    runs = [
        write_growth(tmp_path / "less", (10.0, 16.0), ablation=ablated),
        write_growth(tmp_path / "whole", (10.0, 20.0)),
        write_growth(tmp_path / "other", (10.0, 17.0), ablation={"pim_supernet": False}),
        write_growth(tmp_path / "whole-1", (10.0, 21.0), seed=1),
        write_growth(tmp_path / "beta", (10.0, 19.0), growth={"beta": 0.5}),  # nothing left out: not in this table
    ]
    table = tables_of(*runs)["ablations"]
    assert head(table)[:4] == ["PIM@1", "ST", "GAS", "PIM@3"]
    assert table.cells() == [
        ["✓", "✓", "✓", "✓", "GrowCLIP", "2", "0.60 ± 0.00 (2)", "20.5 ± 0.7 (2)"],
        ["✗", "✓", "✓", "✓", "GrowCLIP without PIM@1", "1", "0.60", "17.0"],
        ["✓", "✓", "✗", "✗", "GrowCLIP without GAS and PIM@3", "1", "0.60", "16.0"],
    ]


def test_growth_of_one_dimension_that_was_trained(tmp_path: Path) -> None:
    runs = []
    for dimension, accuracy, parameters in (("shared_blocks", 12.0, 490_000), ("image_blocks", 13.5, 540_000)):
        run = write_config(tmp_path / dimension, ablation={"grow_only": dimension})
        write_phase(run, 1, accuracy=10.25)
        write_phase(run, 2, accuracy=accuracy, parameters=parameters)
        runs.append(run)
    table = tables_of(*runs)["one_dimension"]
    assert table.cells() == [
        ["b^I", "GrowCLIP growing b^I alone", "1", "+0.10", "+3.25", "13.50"],
        ["b^S", "GrowCLIP growing b^S alone", "1", "+0.05", "+1.75", "12.00"],
    ]


def test_growth_of_one_dimension_in_the_supernet(tmp_path: Path) -> None:
    runs = [write_growth(tmp_path / f"g{seed}", (10.0, 20.0), seed) for seed in range(2)]
    runs.append(write_growth(tmp_path / "less", (10.0, 16.0), ablation={"pim_selected": False}))
    table = tables_of(*runs)["candidates_of_one_dimension"]
    assert table.cells() == [  # of the other dimensions no candidate grows in them alone
        ["b^I", "GrowCLIP", "+0.10 ± 0.00 (2)", "+1.50 ± 0.00 (2)"],
        ["b^S", "GrowCLIP", "+0.05 ± 0.00 (2)", "-0.25 ± 0.00 (2)"],
    ]
    assert "chosen_on" in " ".join(table.notes)


def test_costs(tmp_path: Path) -> None:
    runs = [write_growth(tmp_path / "g", (10.0, 20.0)), write_fixed(tmp_path / "t", "tfs", [9.0, 18.0])]
    tables = tables_of(*runs)
    sizes = ModelSizes(vocab_size=300, context_length=16, image_size=32, embed_dim=16)
    pairs, loss = 20 * BATCH, 8 * BATCH * 16  # of a pair: 8 n² d over n pairs

    def trained(forward: float) -> float:
        return pairs * (3 * forward + loss)

    subnets = [GROWN, BASE, Architecture(0, 2, 1, 1, 1, 0), Architecture(0, 1, 1, 1, 1, 1)]
    expected = {
        ("g", 1, "train"): trained(forward_flops(BASE, sizes, 9.0)),
        ("g", 2, "finetune"): trained(forward_flops(SUPERNET, sizes, 9.0)),
        ("g", 2, "selection"): trained(fmean(forward_flops(subnet, sizes, 9.0) for subnet in subnets)),
        ("g", 2, "train"): trained(forward_flops(GROWN, sizes, 9.0)),
        ("t", 1, "train"): trained(clip_forward_flops(GROWN_CLIP, sizes, 9.0)),
        ("t", 2, "train"): trained(clip_forward_flops(GROWN_CLIP, sizes, 9.0)),
    }
    phases = tables["costs_of_phases"]
    flops = head(phases).index("FLOPs")
    assert {tuple(row[:3]): row[flops].mean for row in phases.rows} == pytest.approx(expected, rel=1e-12)
    assert phases.cells()[2][:7] == ["g", "2", "selection", "1.70", "9.0", "1.0", "1,000"]
    assert phases.cells()[2][8:] == ["1.500", "3.000", "2 × CPU, torch kernels"]

    costs = tables["costs"]
    whole_step = sum(expected["g", 2, phase] for phase in ("finetune", "selection", "train"))
    assert costs.rows[1][6].mean == pytest.approx(whole_step, rel=1e-12)
    assert [cells[:6] + cells[7:] for cells in costs.cells()] == [
        ["GrowCLIP", "1", "0.44", "10.0", "2.0", "1,000", "1.500", "3.000", "2 × CPU, torch kernels"],
        ["GrowCLIP", "2", "0.60", "20.0", "3.0", "3,000", "4.500", "9.000", "2 × CPU, torch kernels"],
        ["TFS", "1", "0.61", "9.0", "2.0", "1,000", "1.500", "3.000", "2 × CPU, torch kernels"],
        ["TFS", "2", "0.61", "18.0", "1.0", "1,000", "1.500", "3.000", "2 × CPU, torch kernels"],
    ]
    assert costs.cells()[0][6] == f"{expected['g', 1, 'train']:.2e}"


def test_costs_say_where_each_phase_ran(tmp_path: Path) -> None:
    run = write_config(tmp_path / "run", steps=1)
    write_phase(run, 1, accuracy=1.0, ranks=8, device="NVIDIA H200", kernels="triton", seconds=1800)
    other = write_config(tmp_path / "other", seed=1, steps=1)
    write_phase(other, 1, accuracy=1.0)
    tables = tables_of(run, other)
    assert tables["costs"].cells()[0][-2:] == [
        "3.500 ± 0.707 (2)",
        "8 × NVIDIA H200, triton kernels; 2 × CPU, torch kernels",
    ]
    assert [row[-2:] for row in tables["costs_of_phases"].cells()] == [
        ["4.000", "8 × NVIDIA H200, triton kernels"],
        ["3.000", "2 × CPU, torch kernels"],
    ]


def test_device_hours_are_of_the_ranks_that_there_were(tmp_path: Path) -> None:
    """A phase of 20 hours on 16 ranks and one more on 2, which are what it ran on at its end."""
    run = write_config(tmp_path / "run", steps=1)
    write_phase(run, 1, accuracy=1.0, ranks=2, seconds=21 * 3600, device_seconds=322 * 3600)
    assert tables_of(run)["costs"].cells()[0][-2] == "322.000"


def test_a_search_counts_the_candidates_as_a_selection_does(tmp_path: Path) -> None:
    run = write_config(tmp_path / "run", method="nas")
    write_phase(run, 1, accuracy=1.0)
    write_phase(run, 2, "search", architecture=SUPERNET, candidates=[candidate(BASE, 440_000, 5.0)])
    rows = tables_of(run)["costs_of_phases"].rows
    assert [row[2] for row in rows] == ["train", "search"]
    assert rows[1][7] == rows[0][7]  # every sampled subnet was the base


def test_flops_of_a_clip_from_elsewhere_are_not_guessed(tmp_path: Path) -> None:
    tables = tables_of(write_fixed(tmp_path / "t", "twp", [9.0], steps=1, baselines={"start": "clip"}))
    assert tables["costs"].cells()[0][6] == "not recorded"


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ([{}, {"growth": {"beta": 0.5}}], ["GrowCLIP", "GrowCLIP, growth.beta=0.5"]),
        ([{"training": {"optimizer": "adamw"}}, {"training": {}}], ["GrowCLIP", "GrowCLIP, training.optimizer=adamw"]),
        ([{"growth": {"beta": 0.5}}], ["GrowCLIP"]),  # nothing to tell it from
        ([{"ablation": {"finetuning": False}}], ["GrowCLIP without ST"]),
        (
            [{"method": "tfs"}, {"method": "tfs", "baselines": {"architecture": {"image_blocks": 1}}}],
            ["TFS", "TFS, baselines.architecture=(0, 1, 6, 6, 4, 0)"],
        ),
        ([{}, {"evaluation": {"batch_size": 7}}], ["GrowCLIP"]),  # bears on no weights
        (
            [{"selection": {"dataset": {"path": "a", **more}}} for more in ({}, {"name": "b"}, {"split": "val"})],
            ["GrowCLIP, selection.dataset=a", "GrowCLIP, selection.dataset=a (val)"],
        ),
        (
            [{}, {"epochs": {"first": 1, "supernet": 1, "selection": 1}, "growth": {"beta": 0.5, "gamma": 0.1}}],
            ["GrowCLIP", "GrowCLIP, configured as run1"],
        ),
    ],
)
def test_labels_tell_groups_apart(tmp_path: Path, settings: list[dict[str, Any]], labels: list[str]) -> None:
    runs = []
    for place, sections in enumerate(settings):
        runs.append(write_config(tmp_path / f"run{place}", seed=place, steps=1, **sections))
        write_phase(runs[-1], 1, accuracy=1.0)
    assert [row[0] for row in tables_of(*runs)["methods"].cells()] == labels


def test_a_group_has_no_mean_cost_if_one_of_its_runs_recorded_none(tmp_path: Path) -> None:
    runs = [write_config(tmp_path / f"run{seed}", seed, steps=1) for seed in range(2)]
    write_phase(runs[0], 1, accuracy=1.0)
    write_phase(runs[1], 1, accuracy=1.0, start="exported")
    assert tables_of(*runs)["costs"].cells()[0][4:8] == ["not recorded"] * 4


def test_which_tables_there_are_follows_from_the_runs(tmp_path: Path) -> None:
    fixed = write_fixed(tmp_path / "t", "tfs", [9.0, 18.0])
    assert list(tables_of(fixed)) == ["runs", "methods", "growth_steps", "costs", "costs_of_phases"]
    grown = write_growth(tmp_path / "g", (10.0, 20.0))
    assert "candidates_of_one_dimension" in tables_of(fixed, grown)
    assert "ablations" not in tables_of(fixed, grown)
