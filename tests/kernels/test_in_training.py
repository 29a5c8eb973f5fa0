"""Training with Triton's kernels is training with PyTorch's: under ZeRO, with subnets and checkpointed activations."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from growclip_ds.architecture import Architecture
from growclip_ds.growth.space import GrowthSpace
from growclip_ds.model.checkpointing import checkpoint_activations
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.model.packed import pack
from growclip_ds.optim import AdamW
from growclip_ds.training.engine import Engine
from growclip_ds.training.iteration import train_iteration
from growclip_kernels.packed_attention import triton_path
from tests.fed_gradients import rank0
from tests.kernels.device import runs_kernels_on_ranks

SPACE = GrowthSpace(Architecture(0, 1, 1, 1, 1, 1), conv_step=1, block_step=1, head_step=1)
SIZES = {"vocab_size": 64, "context_length": 40, "image_size": 64, "embed_dim": 64}
SAMPLES = ((3, 2), (1, 0))  # of each micro-batch of each rank


def train(kernels: str, stage: int, checkpointing: str) -> tuple[list[float], dict[str, Tensor], int]:
    """Losses of two iterations on sampled subnets, rank 0's weights, and how often attention's kernels ran."""
    os.environ["GROWCLIP_KERNELS"] = kernels
    runs = []
    launches = triton_path._launches
    triton_path._launches = lambda *arguments: runs.append(arguments) or launches(*arguments)
    torch.manual_seed(0)
    weights = GrowCLIP(SPACE.supernet, **SIZES).state_dict()
    engine = Engine(
        lambda: checkpoint_activations(GrowCLIP(SPACE.supernet, **SIZES, initialise=False), checkpointing),
        # With so large an epsilon it descends along the gradient, and what is rounding does not become a step.
        lambda named: AdamW([parameter for _, parameter in named], eps=1.0, weight_decay=0.0),
        {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 2,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": stage},
        },
    )
    try:
        engine.load_masters(iter(weights.items()))
        generator = torch.Generator().manual_seed(dist.get_rank())
        losses = []
        for iteration in range(2):
            batches = []
            for size in SAMPLES[dist.get_rank()]:
                captions = [[*torch.randint(63, (5 + 15 * i,), generator=generator).tolist(), 63] for i in range(size)]
                batches.append((torch.randn(size, 3, 64, 64, generator=generator), pack(captions)))
            subnet = SPACE.sample(torch.Generator().manual_seed(iteration))
            losses.append(train_iteration(engine, batches, 0.1, subnet).loss)
        return losses, dict(engine.masters(rank0)), len(runs)
    finally:
        engine.destroy()
        triton_path._launches = launches
        del os.environ["GROWCLIP_KERNELS"]


@runs_kernels_on_ranks
@pytest.mark.parametrize(("stage", "checkpointing"), [(3, "on"), pytest.param(2, "off", marks=pytest.mark.slow)])
def test_as_with_pytorch(group, stage, checkpointing):
    expected, expected_weights, none = group(2).run(train, "torch", stage, checkpointing)[0]
    losses, weights, launches = group(2).run(train, "triton", stage, checkpointing)[0]
    assert none == 0
    assert launches > 0
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, weight in weights.items():  # biases begin at zero, so theirs is the relative error of gradients
        assert (weight - expected_weights[name]).norm() <= 1e-4 * expected_weights[name].norm(), name
