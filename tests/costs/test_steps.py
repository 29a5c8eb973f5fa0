"""Growth steps: candidates, phases, and the paths between which a run lies, against all paths there are."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.config.config import Config, load_config
from growclip_ds.costs.flops import block_group_flops, forward_flops, loss_flops
from growclip_ds.costs.steps import GrowthSteps
from growclip_ds.growth.phases import Phase

S1, S2 = Architecture(0, 6, 6, 6, 4, 0), Architecture(2, 10, 10, 6, 8, 4)


def config(folder: Path, *overrides: str, subsets: int = 3) -> Config:
    file = folder / "config.yaml"
    listed = ", ".join(f"{{name: s{n}, shards: s{n}.tar, samples: {1000 * (n + 1)}}}" for n in range(subsets))
    file.write_text(f"data: {{subsets: [{listed}], tokenizer: {{vocab_size: 49408}}}}\nselection: {{held_out: 100}}\n")
    return load_config(file, overrides)


def test_the_table_of_64_is_the_papers(tmp_path: Path) -> None:
    steps = GrowthSteps(config(tmp_path), ModelSizes(), 25)
    candidates = steps.all_candidates(S1)
    assert len(set(candidates)) == 64
    assert S2 in candidates
    assert steps.parameters(S2) == pytest.approx(116.67e6, rel=1e-4)
    limited = GrowthSteps(config(tmp_path, "growth.max_parameters=100_000_000"), ModelSizes(), 25)
    assert limited.all_candidates(S1) == candidates
    assert S2 not in limited.space(S1)


def test_a_step_has_its_phases_with_what_they_run(tmp_path: Path) -> None:
    steps = GrowthSteps(config(tmp_path), ModelSizes(), 25)
    finetune, selection, train = steps.phases(2, S1, S2)
    supernet = Architecture(2, 10, 10, 10, 8, 4)
    assert [phase.phase for phase in (finetune, selection, train)] == [Phase.FINETUNE, Phase.SELECTION, Phase.TRAIN]
    assert (finetune.architecture, selection.architecture, train.architecture) == (supernet, supernet, S2)
    assert (finetune.epochs, selection.epochs, train.epochs) == (2, 2, 26)
    loss = loss_flops(1536, 512) / 1536
    assert train.flops == 3 * forward_flops(S2, ModelSizes(), 25) + loss
    mean = sum(3 * forward_flops(c, ModelSizes(), 25) + loss for c in steps.all_candidates(S1)) / 64
    assert selection.flops == pytest.approx(mean)


def test_second_passes_are_counted(tmp_path: Path) -> None:
    once = GrowthSteps(config(tmp_path), ModelSizes(), 25).pair_flops(S2)
    twice = GrowthSteps(config(tmp_path), ModelSizes(), 25, micro_batches=4).pair_flops(S2)
    assert twice - once == pytest.approx(forward_flops(S2, ModelSizes(), 25))
    again = GrowthSteps(config(tmp_path, "training.activation_checkpointing=on"), ModelSizes(), 25).pair_flops(S2)
    assert again - once == pytest.approx(block_group_flops(S2, ModelSizes(), 25))


@pytest.mark.parametrize("limit", ["null", "120_000_000", "45_000_000", "31_000_000"])
def test_no_path_is_cheaper_or_dearer_than_the_extremes(tmp_path: Path, limit: str) -> None:
    """All paths of three steps are tried, with three dimensions that grow."""
    frozen = "growth.frozen=[conv_layers, text_heads, shared_blocks]"
    run = config(tmp_path, f"growth.max_parameters={limit}", frozen)
    steps, samples = GrowthSteps(run, ModelSizes(), 25), (1000, 2000, 3000)

    def cost(path: tuple[Architecture, ...]) -> float:
        phases = [steps.phases(n + 1, path[max(0, n - 1)], chosen) for n, chosen in enumerate(path)]
        return sum(p.epochs * p.flops * sum(samples[: p.step]) for p in itertools.chain(*phases))

    paths = [(S1, second, third) for second in steps.space(S1) for third in steps.space(second)]
    cheapest, dearest = steps.cheapest(samples), steps.dearest(samples)
    assert {cheapest.architectures, dearest.architectures} <= set(paths)
    costs = [cost(path) for path in paths]
    assert cost(cheapest.architectures) == min(costs)
    assert cost(dearest.architectures) == max(costs)
    assert sum(p.epochs * p.flops * sum(samples[: p.step]) for p in dearest.phases) == pytest.approx(max(costs))


def test_the_other_methods_have_their_own_models(tmp_path: Path) -> None:
    fixed = GrowthSteps(config(tmp_path, "method=twp"), ModelSizes(), 25)
    assert fixed.cheapest(None).architectures == fixed.dearest(None).architectures == (fixed.base,) * 3
    assert fixed.base == Architecture(0, 12, 12, 12, 8, 0)
    assert {phase.phase for phase in fixed.cheapest(None).phases} == {Phase.TRAIN}
    nas = GrowthSteps(config(tmp_path, "method=nas"), ModelSizes(), 25).dearest(None)
    assert [phase.phase for phase in nas.phases] == [Phase.TRAIN, *([Phase.SEARCH, Phase.TRAIN] * 2)]
    only = GrowthSteps(config(tmp_path, "ablation.grow_only=text_blocks"), ModelSizes(), 25).cheapest(None)
    assert [architecture.text_blocks for architecture in only.architectures] == [6, 10, 14]
