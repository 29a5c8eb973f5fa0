"""Activations against what models really keep: tensors that are alive after a forward pass and during the backward."""

from __future__ import annotations

import pytest
import torch

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.config.sections import ActivationCheckpointing
from growclip_ds.costs.activations import Part, moments, parts, total_kept
from growclip_ds.model.checkpointing import checkpoint_activations
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.model.packed import pack
from tests.costs.measured import Allocations

SIZES = ModelSizes(vocab_size=300, image_size=48, embed_dim=64)
ARCHITECTURES = [
    Architecture(0, 2, 2, 1, 1, 0),
    Architecture(2, 1, 1, 1, 1, 1),
    Architecture(0, 1, 1, 3, 3, 0),
    Architecture(1, 2, 2, 1, 3, 3),
]


def measured(
    architecture: Architecture,
    pairs: int,
    captions: int,
    dtype: torch.dtype,
    checkpointing: ActivationCheckpointing,
    backward: bool = True,
) -> tuple[int, int]:
    """Bytes kept after a forward pass, and the most in the backward pass, gradients of parameters among them."""
    with Allocations() as memory:
        model = GrowCLIP(architecture, 300, 77, 48, 64)
        checkpoint_activations(model, checkpointing).to(dtype)
        images, text = torch.randn(pairs, 3, 48, 48).to(dtype), pack([[*range(1, captions), 299]] * pairs)
        memory.restart()
        before = memory.live
        outputs = model(images, text)
        memory.restart()
        kept = memory.live - before
        if backward:
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        return kept, memory.peak - before


def most(foretold: list[Part], element: int) -> float:
    """The peak of the backward pass, where gradients stay as they are made."""
    return max(alive + element * elements for _, alive, elements in moments(foretold))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
@pytest.mark.parametrize(("pairs", "captions", "dtype"), [(16, 12, torch.float32), (16, 40, torch.bfloat16)])
def test_a_micro_batch_keeps_what_is_foretold(
    architecture: Architecture, pairs: int, captions: int, dtype: torch.dtype
) -> None:
    foretold = parts(architecture, SIZES, pairs, captions, dtype.itemsize)
    kept, peak = measured(architecture, pairs, captions, dtype, "off")
    assert total_kept(foretold) == pytest.approx(kept, rel=0.05)
    assert most(foretold, dtype.itemsize) == pytest.approx(peak, rel=0.08)


@pytest.mark.parametrize("architecture", [ARCHITECTURES[1], Architecture(0, 6, 3, 1, 1, 4)], ids=str)
def test_and_so_it_does_with_checkpointing(architecture: Architecture) -> None:
    foretold = parts(architecture, SIZES, 16, 12, 4, "on")
    kept, peak = measured(architecture, 16, 12, torch.float32, "on")
    assert total_kept(foretold) == pytest.approx(kept, rel=0.05)
    assert most(foretold, 4) == pytest.approx(peak, rel=0.08)
    less = [total_kept(parts(architecture, SIZES, 16, 12, 4, mode)) for mode in ("offload", "on", "off")]
    assert less == sorted(less)
    assert less[0] < less[1] < less[2]


def test_on_the_kernels_path_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What attention keeps, its input, output and a number a token and head, is that of Triton's kernels."""
    monkeypatch.setenv("GROWCLIP_KERNELS", "triton")
    architecture = Architecture(0, 1, 1, 1, 2, 2)
    kept, _ = measured(architecture, 2, 12, torch.float32, "off", backward=False)
    assert total_kept(parts(architecture, SIZES, 2, 12, 4)) == pytest.approx(kept, rel=0.05)


def test_every_parameter_belongs_to_a_part() -> None:
    for architecture in ARCHITECTURES:
        of_parts = sum(part.elements for part in parts(architecture, SIZES, 1, 1, 4))
        assert of_parts == SIZES.parameters_of(architecture) + 1  # the temperature is the heads'
