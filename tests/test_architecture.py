"""The parameter counts of the paper's tables, and the model's own count against the formula."""

from __future__ import annotations

import pytest

from growclip_ds import Architecture, GrowCLIP, GrowthSpace
from growclip_ds.architecture import ModelSizes

S1, S2, S3, S4 = (
    Architecture(0, 6, 6, 6, 4, 0),
    Architecture(2, 10, 10, 6, 8, 4),
    Architecture(4, 14, 10, 10, 8, 8),
    Architecture(6, 18, 10, 10, 8, 8),
)
SMALL = {"vocab_size": 61, "context_length": 9, "image_size": 32, "embed_dim": 24}


@pytest.mark.parametrize(
    ("architecture", "millions", "embed_dim"),
    [
        (S1, 30.0, 512),
        (S2, 116.6, 512),
        (S3, 168.6, 512),
        (S4, 188.4, 512),
        (Architecture(2, 10, 10, 6, 8, 0), 96.9, 512),
        (Architecture(2, 10, 10, 10, 8, 0), 109.5, 512),
        (Architecture(2, 14, 14, 10, 12, 4), 287.4, 512),
        (Architecture(2, 14, 14, 10, 12, 8), 325.9, 512),
        (Architecture(0, 24, 16, 12, 12, 0), 431.1, 768),
        (Architecture(2, 24, 16, 12, 12, 0), 431.2, 768),
    ],
)
def test_totals_of_tables_3_5_and_8(architecture, millions, embed_dim):
    assert architecture.num_parameters(embed_dim=embed_dim) / 1e6 == pytest.approx(millions, rel=0.003)


@pytest.mark.parametrize(
    ("base", "millions"),
    [
        (S1, {"image_blocks": 7.1, "image_heads": 20.1, "conv_layers": 0.1, "text_blocks": 3.2, "text_heads": 27.0,
              "shared_blocks": 7.1}),
        (S2, {"image_blocks": 19.7, "image_heads": 67.3, "conv_layers": 0.1, "text_blocks": 12.6, "text_heads": 45.0,
              "shared_blocks": 19.7}),
        (S3, {"image_blocks": 19.7, "image_heads": 105.1, "conv_layers": 0.1, "text_blocks": 12.6, "text_heads": 69.5,
              "shared_blocks": 19.7}),
    ],
)  # fmt: skip
def test_growth_of_one_dimension_of_table_9(base, millions):
    for dimension, expected in millions.items():
        values = dict(base.items())
        values[dimension] += 2 if dimension == "conv_layers" else 4
        grown = Architecture(**values).num_parameters() - base.num_parameters()
        assert grown / 1e6 == pytest.approx(expected, abs=0.2), dimension


def count(model: GrowCLIP) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if name != "logit_scale")


def test_every_small_candidate_has_the_parameters_that_the_formula_says():
    for base in (Architecture(0, 1, 2, 1, 1, 0), Architecture(1, 2, 1, 1, 2, 1)):
        for candidate in GrowthSpace(base, conv_step=1, block_step=2, head_step=1):
            model = GrowCLIP(candidate, **SMALL, initialise=False)
            assert count(model) == candidate.num_parameters(**SMALL)
            shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
            assert list(shapes.items()) == list(candidate.parameter_shapes(ModelSizes(**SMALL)).items())


@pytest.mark.parametrize("architecture", [S1, S2, S3, S4], ids=["S1", "S2", "S3", "S4"])
def test_full_size_parameters(architecture):
    import torch

    with torch.device("meta"):
        assert count(GrowCLIP(architecture)) == architecture.num_parameters()


def test_candidates_are_ordered_as_the_paper_lists_the_dimensions():
    assert S1 < S2 < S3 < S4
    assert S4.covers(S1)
    assert not S1.covers(S2)
    assert [name for name, _ in S1.items()] == [
        "conv_layers", "image_blocks", "image_heads", "text_blocks", "text_heads", "shared_blocks",
    ]  # fmt: skip
    assert str(S2) == "(2, 10, 10, 6, 8, 4)"


@pytest.mark.parametrize("bad", [{"image_heads": 0}, {"text_blocks": -1}, {"conv_layers": 1.5}, {"text_heads": True}])
def test_impossible_architectures_are_refused_by_name(bad):
    values = dict(S1.items()) | bad
    with pytest.raises(ValueError, match=next(iter(bad))):
        Architecture(**values)


def test_picture_sizes_must_fit_the_stem():
    with pytest.raises(ValueError, match="multiple of 16"):
        S1.parameter_shapes(ModelSizes(image_size=100))
    assert ModelSizes().image_tokens == 197
