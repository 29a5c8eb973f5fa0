"""The paper's largest model takes an optimizer step on two CPU ranks. Slow: some minutes and several GiB a stage."""

from __future__ import annotations

import math
import resource
import time

import pytest
import torch

from growclip_ds import Architecture, GrowCLIP
from growclip_ds.architecture import ModelSizes
from growclip_ds.distributed import rank
from growclip_ds.model.initial import initial_tensor
from growclip_ds.model.packed import pack
from growclip_ds.optim import Lamb
from growclip_ds.training.engine import Engine
from growclip_ds.training.iteration import train_iteration
from tests.group import Groups

S4 = Architecture(6, 18, 10, 10, 8, 8)
LOCAL_BATCH = 4


def take_steps(stage: int) -> dict[str, float]:
    """Builds S4 at full size and trains it for two iterations."""
    start = time.perf_counter()
    config = {
        "train_batch_size": 2 * LOCAL_BATCH,
        "train_micro_batch_size_per_gpu": LOCAL_BATCH,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage},
    }
    engine = Engine(lambda: GrowCLIP(S4, initialise=False), lambda parameters: Lamb([p for _, p in parameters]), config)
    shapes = S4.parameter_shapes(ModelSizes())
    engine.load_masters((name, initial_tensor(name, shape, S4, 0)) for name, shape in shapes.items())
    built = time.perf_counter()
    generator = torch.Generator().manual_seed(rank())
    images = torch.randn(LOCAL_BATCH, 3, 224, 224, generator=generator)
    captions = pack([[*torch.randint(49407, (19,), generator=generator).tolist(), 49407] for _ in range(LOCAL_BATCH)])
    outcomes = [train_iteration(engine, [(images, captions)], 1e-5) for _ in range(2)]
    stepped = time.perf_counter()
    engine.destroy()
    return {
        "first": outcomes[0].loss,
        "second": outcomes[1].loss,
        "gradient_norm": outcomes[0].gradient_norm,
        "build_seconds": built - start,
        "iteration_seconds": (stepped - built) / 2,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_s4_takes_an_optimizer_step(group: Groups, stage: int) -> None:
    group(2).close()  # new processes: the peak is to be this test's own
    results = group(2).run(take_steps, stage, limit=1200)
    for rank_of, result in enumerate(results):
        print(f"\nZeRO {stage}, rank {rank_of}: " + ", ".join(f"{name} {value:.3f}" for name, value in result.items()))
    for result in results:
        assert result["first"] == results[0]["first"]
        assert math.isfinite(result["gradient_norm"])
        assert result["gradient_norm"] > 0
        assert result["second"] < result["first"]
