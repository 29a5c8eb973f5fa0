from __future__ import annotations

import pytest
import torch

from growclip_ds import Architecture, GrowCLIP, GrowthSpace, composite_metric
from growclip_ds.data.pictures import normalise
from growclip_ds.growth.selection import SupernetEncoder, rank_candidates
from growclip_ds.model.packed import pack

SIZES = {"vocab_size": 61, "context_length": 12, "image_size": 32, "embed_dim": 24}


def test_the_composite_metric_is_equation_7():
    # 25.7 % for the paper's S2 (116.6 M) in its supernet, when 3 million samples have become 6.
    assert composite_metric(25.7, 116_600_000, 233_200_000, 3_000_000, 6_000_000) == pytest.approx(25.7 + 0.5 * 0.5 * 2)
    assert composite_metric(10, 1, 3, 1, 4, alpha=2) == pytest.approx(10 + 2 * 0.25 * 3)


def test_more_new_data_weighs_accuracy_more():
    small, large = Architecture(0, 1, 1, 1, 1, 0), Architecture(0, 5, 1, 1, 1, 0)
    accuracies = {small: 20.0, large: 20.2}

    def chosen(previous: int) -> Architecture:
        count = {small: 10, large: 20}.__getitem__
        return rank_candidates(accuracies, count, large, previous, 1000, alpha=0.5)[0].architecture

    assert chosen(previous=900) == small  # 20 + 0.5 · 0.9 · 2 > 20.2 + 0.5 · 0.9
    assert chosen(previous=100) == large


def test_of_equals_the_smaller_is_taken():
    rows = rank_candidates(
        {Architecture(0, 2, 1, 1, 1, 0): 5.0, Architecture(0, 1, 1, 1, 1, 0): 5.0},
        lambda a: a.image_blocks,
        Architecture(0, 2, 1, 1, 1, 0),
        1,
        2,
        alpha=0.0,
    )
    assert [row.parameters for row in rows] == [1, 2]
    assert rows[0].metric == rows[1].metric == 5.0


@pytest.mark.parametrize("base", [Architecture(0, 1, 1, 1, 2, 0), Architecture(1, 2, 2, 1, 1, 1)], ids=str)
def test_shared_prefixes_give_every_candidate_the_features_it_has_alone(base):
    torch.manual_seed(0)
    space = GrowthSpace(base, conv_step=1, block_step=1, head_step=1)
    supernet = GrowCLIP(space.supernet, **SIZES)
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    text = pack([[3, 7, 60], [60], [1] * 11 + [60], [5, 60]])
    encoder = SupernetEncoder(supernet, space.candidates)
    images, texts = encoder.images(pixels), encoder.texts(text)
    for candidate, image_features, text_features in zip(space, images, texts, strict=True):
        alone = supernet.extract(candidate)
        torch.testing.assert_close(image_features, alone.encode_image(normalise(pixels, torch.float32)).detach())
        torch.testing.assert_close(text_features, alone.encode_text(text).detach())


def test_the_work_is_shared():
    """64 candidates cost what their distinct prefixes cost: counted in calls of the dearest layers."""
    space = GrowthSpace(Architecture(0, 2, 1, 2, 1, 2), conv_step=1, block_step=1, head_step=1)
    supernet = GrowCLIP(space.supernet, **SIZES)
    calls = {"image": 0, "text": 0, "shared": 0}
    for name in calls:
        for block in getattr(supernet, name).blocks:
            block.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    encoder = SupernetEncoder(supernet, space.candidates)
    encoder.images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    # (conv layers × heads) runs of 3 blocks; each of their 2 exits enters the shared encoder at the widths that occur
    # (one picture head: 1 or 2 heads wide, by the text; two: 2), 3 blocks each.
    assert calls == {"image": 4 * 3, "text": 0, "shared": (2 * 2 + 2 * 1) * 2 * 3}


def test_candidates_left_out_are_not_computed():
    space = GrowthSpace(Architecture(0, 1, 1, 1, 1, 0), 1, 1, 1, frozen=["image_heads", "text_heads", "shared_blocks"])
    supernet = GrowCLIP(space.supernet, **SIZES)
    encoder = SupernetEncoder(supernet, space.candidates)
    assert len(encoder.images(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))) == len(space) == 8
    assert len({id(features) for features in encoder.texts(pack([[60]]))}) == 2
