from __future__ import annotations

import pytest
import torch

from growclip_ds import Architecture, GrowCLIP
from growclip_ds.model.checkpointing import checkpoint_activations
from growclip_ds.model.layers import Block
from tests.model.test_growclip import SIZES, captions

ARCHITECTURE, SUBNET = Architecture(1, 2, 1, 2, 2, 2), Architecture(0, 1, 1, 2, 1, 1)


def gradients(mode: str, architecture: Architecture) -> tuple[dict, int]:
    torch.manual_seed(0)
    model = checkpoint_activations(GrowCLIP(ARCHITECTURE, **SIZES), mode)
    names = list(model.state_dict())
    assert names == list(ARCHITECTURE.parameter_shapes(model.sizes))
    calls = 0

    def count(*_) -> None:
        nonlocal calls
        calls += 1

    for block in (b for b in model.modules() if isinstance(b, Block)):
        block.mlp.register_forward_hook(count)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    outputs = model(images, captions([3, 7, 12]), architecture)
    sum((output * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum() for output in outputs).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, calls


def test_other_modes_are_refused():
    with pytest.raises(ValueError, match="one of off, on, offload, not 'blocks'"):
        gradients("blocks", ARCHITECTURE)


@pytest.mark.parametrize("mode", ["on", "offload"])
@pytest.mark.parametrize("architecture", [ARCHITECTURE, SUBNET], ids=["whole", "subnet"])
def test_the_gradients_are_the_same_and_the_blocks_run_twice(mode, architecture):
    expected, once = gradients("off", architecture)
    found, twice = gradients(mode, architecture)
    assert twice == 2 * once
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None
        else:
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
