from __future__ import annotations

import pytest
import torch

from growclip_ds import Architecture, GrowCLIP, GrowthSpace
from growclip_ds.data.pictures import normalise
from growclip_ds.growth.supernet_encoder import SupernetEncoder
from growclip_ds.model.packed import pack

SIZES = {"vocab_size": 61, "context_length": 12, "image_size": 32, "embed_dim": 24}


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
