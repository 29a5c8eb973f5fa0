"""Where an iteration has the host wait for the device: the places are known, and all before or after its passes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from growclip_ds.architecture import Architecture
from growclip_ds.config.config import HealthSection
from growclip_ds.data.fault_limit import FaultLimit
from growclip_ds.data.shards import index_shards
from growclip_ds.data.stream import TrainingStream
from growclip_ds.model.checkpointing import checkpoint_activations
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.optim import Lamb
from growclip_ds.training.engine import Engine
from growclip_ds.training.health import Health
from growclip_ds.training.trainer import Trainer
from tests.data.corpus import small_tokenizer, write_shards
from tests.group import Groups

READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")
ON_THE_HOST = {"shard_of", "_read", "pack", "_longest"}  # the loader's, and of captions that are on the CPU
EXPECTED = [
    "_agree: tensor",  # what the ranks have to agree on: nothing is queued yet
    "_agree: tolist",
    "train_iteration: item",  # the loss, when all is queued
    "gradient_norm: __float__",
    "train_iteration: item",  # the temperature
]


@contextlib.contextmanager
def noted(reads: list[list[str]]) -> Iterator[None]:
    """Adds to the last of the lists which functions of this project read tensors, or make them of the host's numbers.

    On a GPU both wait for it. What operators read inside is for tests/model/test_waits.py, and DeepSpeed's reads are
    its own affair.
    """

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            caller = sys._getframe(1)
            function = caller.f_code.co_name
            if caller.f_globals["__name__"].startswith("growclip") and function not in ON_THE_HOST:
                reads[-1].append(f"{function}: {name}")
            return original(*args, **more)

        return call

    with contextlib.ExitStack() as stack:
        for owner, name in [*((Tensor, name) for name in READS), (torch, "tensor")]:
            stack.enter_context(mock.patch.object(owner, name, watched(name, getattr(owner, name))))
        yield


def reads_of_iterations(folder: str, micro_batches: int, stage: int) -> list[list[str]]:
    index, tokenizer = index_shards(sorted(Path(folder).glob("*.tar"))), small_tokenizer()
    architecture, sizes = Architecture(0, 1, 1, 1, 1, 1), (tokenizer.vocab_size, tokenizer.context_length, 16, 16)
    engine = Engine(
        lambda: checkpoint_activations(GrowCLIP(architecture, *sizes, initialise=False), "on"),
        lambda named: Lamb([parameter for _, parameter in named]),
        {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": micro_batches,
            "zero_optimization": {"stage": stage},
        },
    )
    engine.load_masters((name, tensor.detach()) for name, tensor in GrowCLIP(architecture, *sizes).named_parameters())
    reads: list[list[str]] = [[]]
    trainer = Trainer(
        engine,
        TrainingStream(
            index, tokenizer, image_size=16, global_batch_size=4, epochs=1, seed=0, micro_batches=micro_batches
        ),
        FaultLimit(len(index), 0.0),
        Health(HealthSection(), Path(folder), print),
        keeper=mock.Mock(is_due_by_clock=False, is_written=False, is_due=lambda _: False),
        stop=SimpleNamespace(requested=False),
        watch=mock.Mock(reached=lambda _: reads.append([])),
        report=lambda _: None,
        report_every=100,
    )
    with noted(reads):
        trainer.run(lambda _: 0.01)
    engine.destroy()
    return reads[1:]


@pytest.mark.parametrize(("micro_batches", "stage"), [(1, 2), (2, 3)])
def test_an_iteration_reads_where_it_is_known_to(group: Groups, tmp_path: Path, micro_batches: int, stage: int) -> None:
    folder = str(write_shards(tmp_path, samples=12))
    for waiting, first, *later in group(2).run(reads_of_iterations, folder, micro_batches, stage):
        assert waiting == []  # for the first batch
        assert [read for read in first if read != "_mean_and_std: tensor"] == EXPECTED
        assert later == [EXPECTED] * 2
