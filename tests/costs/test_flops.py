"""Operations against those that PyTorch counts in real models."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.baselines.clip import FixedCLIP, clip_config
from growclip_ds.costs.flops import (
    block_group_flops,
    clip_forward_flops,
    forward_flops,
    loss_flops,
    training_flops,
)
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.model.packed import PackedTokens, pack
from growclip_kernels import contrastive_loss

SIZES = ModelSizes(vocab_size=16, context_length=4, image_size=32, embed_dim=8)


def counted(model: torch.nn.Module, text: PackedTokens, pairs: int, backward: bool = False) -> int:
    images = torch.randn(pairs, 3, SIZES.image_size, SIZES.image_size)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        outputs = model(images, text)
        if backward:
            sum(output.sum() for output in outputs).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("architecture", [Architecture(2, 2, 2, 1, 1, 0), Architecture(1, 1, 1, 2, 3, 2)])
def test_the_forward_pass_is_what_pytorch_counts(architecture: Architecture) -> None:
    """With captions of one token, of which a causal mask hides nothing; PyTorch counts what it would hide."""
    model = GrowCLIP(architecture, 16, 4, 32, 8)
    assert counted(model, pack([[15]] * 3), 3) == 3 * forward_flops(architecture, SIZES, 1)


def test_of_longer_captions_what_the_mask_hides_is_not_counted() -> None:
    architecture = Architecture(0, 1, 1, 2, 2, 1)
    model = GrowCLIP(architecture, 16, 4, 32, 8)
    hidden = 3 * 4 * 128 * (4 * 4 - 4 * 5 / 2)  # of three blocks 128 wide
    assert counted(model, pack([[1, 2, 3, 15]] * 2), 2) == 2 * (forward_flops(architecture, SIZES, 4) + hidden)


def test_of_a_fixed_clip_too() -> None:
    architecture = Architecture(0, 2, 2, 3, 1, 0)
    model = FixedCLIP(clip_config(architecture, SIZES, 15))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    assert counted(model, pack([[15]] * 3), 3) == 3 * clip_forward_flops(architecture, SIZES, 1)


def test_training_takes_three_forward_passes_but_for_gradients_of_the_input() -> None:
    """The first convolution and the patches of a picture have no gradient to pass on, nor does PyTorch count one."""
    architecture = Architecture(1, 2, 3, 2, 2, 1)
    model = GrowCLIP(architecture, 16, 4, 32, 8)
    first = 2 * 16 * 16 * 64 * 27
    found = counted(model, pack([[15]] * 3), 3, backward=True)
    assert found == 3 * (training_flops(forward_flops(architecture, SIZES, 1)) - first)


def test_the_loss_makes_its_scores_twice_and_multiplies_them_twice() -> None:
    images, texts = (torch.randn(6, 16, requires_grad=True) for _ in range(2))
    with FlopCounterMode(display=False) as counter:
        contrastive_loss(images, texts, torch.ones(1, requires_grad=True)).backward()
    assert counter.get_total_flops() == loss_flops(6, 16)


def test_vit_b_16_is_that_of_the_literature() -> None:
    """open_clip's profile of ViT-B-16: 41.09 GFLOP a pair, all 77 tokens and all of the causal scores counted."""
    hidden = 12 * 4 * 512 * (77**2 - 77 * 78 // 2)
    found = clip_forward_flops(Architecture(0, 12, 12, 12, 8, 0), ModelSizes(), 77) + hidden
    assert found == pytest.approx(41.09e9, rel=0.01)


def test_blocks_are_most_of_a_large_model_but_not_all() -> None:
    s4 = Architecture(6, 18, 10, 10, 8, 8)
    assert 0.8 < block_group_flops(s4, ModelSizes(), 25) / forward_flops(s4, ModelSizes(), 25) < 0.95
