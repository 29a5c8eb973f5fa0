"""The host never waits for the device in a forward or backward pass: on the meta device there is nothing to read."""

from __future__ import annotations

import pytest
import torch

from growclip_ds import Architecture, GrowCLIP
from growclip_ds.model.checkpointing import checkpoint_activations
from growclip_ds.model.packed import PackedTokens, pack
from tests.model.test_growclip import SIZES, captions


@pytest.mark.parametrize("checkpointing", ["off", "on"])
@pytest.mark.parametrize("shared_blocks", [0, 2])
def test_a_pass_reads_nothing(shared_blocks: int, checkpointing: str) -> None:
    model = checkpoint_activations(GrowCLIP(Architecture(1, 1, 1, 2, 2, shared_blocks), **SIZES), checkpointing)
    model.to("meta")
    images, text = torch.empty(3, 3, 32, 32, device="meta"), captions([3, 12, 2]).to("meta")
    outputs = model(images, text)
    with pytest.raises(RuntimeError, match="meta"):
        outputs[2].item()
    sum(output.sum() for output in outputs).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_nor_does_either_modality_alone() -> None:
    model = GrowCLIP(Architecture(0, 1, 1, 1, 2, 1), **SIZES).to("meta")
    model.encode_image(torch.empty(3, 3, 32, 32, device="meta"))
    model.encode_text(captions([3, 12, 2]).to("meta"))


@pytest.mark.parametrize(
    ("boundaries", "longest", "message"),
    [
        ([0, 3, 2, 5], 3, "must not decrease"),
        ([0, 2, 4], 2, "number of tokens, 5"),
        ([0, 2, 5], 2, "a sequence of 3 tokens"),
    ],
)
def test_captions_are_checked_before_they_go_to_the_device(boundaries: list[int], longest: int, message: str) -> None:
    wrong = PackedTokens(torch.ones(5, dtype=torch.int64), torch.tensor(boundaries, dtype=torch.int32), longest)
    with pytest.raises(ValueError, match=message):
        wrong.to("meta")
    with pytest.raises(ValueError, match=message):
        GrowCLIP(Architecture(0, 1, 1, 1, 1, 0), **SIZES).encode_text(wrong)
    assert pack([[1, 60]]).to("meta").sequences.tokens == 2
