from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from growclip_ds import Architecture, GrowthSpace
from growclip_ds.architecture import ModelSizes
from growclip_ds.config.config import load_config
from growclip_ds.growth.space import growth_space, unlimited_growth_space

BASE = Architecture(0, 6, 6, 6, 4, 0)


def test_every_dimension_stays_or_grows():
    space = GrowthSpace(BASE)
    assert len(space) == len(set(space)) == 64
    assert BASE in space
    assert space.supernet == Architecture(2, 10, 10, 10, 8, 4)
    for candidate in space:
        for (name, value), (_, old) in zip(candidate.items(), BASE.items(), strict=True):
            assert value - old in (0, 2 if name == "conv_layers" else 4)


def test_frozen_dimensions_halve_the_space():
    space = GrowthSpace(BASE, frozen=["shared_blocks", "text_heads"])
    assert len(space) == 16
    assert space.supernet == Architecture(2, 10, 10, 10, 4, 0)
    assert len(GrowthSpace(BASE, head_step=0)) == 16
    with pytest.raises(ValueError, match="wings"):
        GrowthSpace(BASE, frozen=["wings"])
    with pytest.raises(ValueError, match="block_step"):
        GrowthSpace(BASE, block_step=-1)


def test_candidates_beyond_max_parameters_are_left_out():
    whole = GrowthSpace(BASE)
    limit = 40_000_000
    space = whole.within(limit, Architecture.num_parameters)
    assert set(space) == {c for c in whole if c.num_parameters() <= limit}
    assert 1 < len(space) < 64
    assert all(space.supernet.covers(candidate) for candidate in space)
    assert space.supernet.text_heads == 4  # wider text alone costs 27 million
    with pytest.raises(ValueError, match="max_parameters is 1,000"):
        whole.within(1000, Architecture.num_parameters)


def test_sampling_is_uniform_and_repeats_with_the_seed():
    space = GrowthSpace(BASE)
    generator = torch.Generator().manual_seed(5)
    draws = [space.sample(generator) for _ in range(6400)]
    counts = Counter(draws)
    assert set(counts) == set(space)
    chi_square = sum((n - 100) ** 2 / 100 for n in counts.values())
    assert chi_square < 120  # 63 degrees of freedom: beyond 120 in one of 20,000 seeds
    again = torch.Generator().manual_seed(5)
    assert draws[:50] == [space.sample(again) for _ in range(50)]


def test_a_run_limits_what_a_step_may_grow_into(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data: {subsets: [{name: s, shards: s.tar}], tokenizer: {vocab_size: 300}}")
    count = ModelSizes().parameters_of
    limited = load_config(file, ["growth.frozen=[conv_layers]", "growth.max_parameters=100_000_000"])
    everything, space = unlimited_growth_space(limited, BASE), growth_space(limited, BASE, count)
    assert len(everything) == 32
    assert list(space) == [one for one in everything if count(one) <= 100_000_000] != list(everything)
    alone = growth_space(load_config(file, ["ablation.grow_only=text_blocks"]), BASE, count)
    assert list(alone) == [BASE, replace(BASE, text_blocks=BASE.text_blocks + 4)]


def test_the_supernet_is_worked_out_once() -> None:
    """A plan asks for it on thousands of paths."""
    space = GrowthSpace(BASE)
    assert space.supernet is space.supernet
