"""The training stream of a rank: its micro-batches of every iteration, whatever the number of ranks and workers."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader

from growclip_ds import distributed
from growclip_ds.data.batch import Batch, BatchLoader
from growclip_ds.data.faults import Cause
from growclip_ds.data.order import TrainingOrder, shares
from growclip_ds.data.shards import ShardIndex
from growclip_ds.data.tokens import Tokenizer
from growclip_ds.errors import InputError

_PREFETCHED = 2  # micro-batches a worker works ahead


class TrainingStream:
    """The samples of a phase as this rank trains on them.

    Iteration i takes the i-th global batch of the phase (see `TrainingOrder`), of which this rank gets a contiguous
    share, cut into micro-batches. A broken sample leaves its place empty: its micro-batch is shorter, and the others
    are as they would be without the fault.

    Args:
        index: the samples to train on.
        tokenizer: of the captions.
        image_size: side of the square pictures in pixels.
        global_batch_size: samples of an iteration over all ranks and micro-batches.
        epochs: length of the phase.
        seed: decides the order.
        micro_batches: batches that a rank's share comes in.
        workers: processes that read and decode; 0 does it in this one.
        start_iteration: first iteration to give, at no cost for those before it.
        pin_memory: whether batches are put where copies to a GPU need not be waited for.
        rank, world_size: of this process where they are not those of torch.distributed.

    Attributes:
        samples: N, samples of one epoch.
        iterations: of the whole phase.
        faults: broken samples met so far by this rank, by cause.

    Raises:
        InputError: the ranks and micro-batches cannot divide the global batch.
    """

    def __init__(
        self,
        index: ShardIndex,
        tokenizer: Tokenizer,
        *,
        image_size: int,
        global_batch_size: int,
        epochs: float,
        seed: int,
        micro_batches: int = 1,
        workers: int = 0,
        start_iteration: int = 0,
        pin_memory: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.rank = distributed.rank() if rank is None else rank
        self.world_size = distributed.world_size() if world_size is None else world_size
        pieces = self.world_size * micro_batches
        if global_batch_size < 1 or global_batch_size % pieces:
            raise InputError(
                f"a global batch of {global_batch_size} cannot be divided among {self.world_size} ranks with "
                f"{micro_batches} micro-batches each; choose a multiple of {pieces}"
            )
        self.order = TrainingOrder(len(index), global_batch_size, epochs, seed)
        self.samples = len(index)
        self.iterations = self.order.iterations
        self.start_iteration = start_iteration
        self.micro_batches = micro_batches
        self.workers = workers
        self.pin_memory = pin_memory
        self.faults: Counter[Cause] = Counter()
        self._loader = BatchLoader(index, tokenizer, image_size)

    def __iter__(self) -> Iterator[list[Batch]]:
        """This rank's micro-batches, an iteration at a time; the workers end with the iterator."""
        loaded = iter(self._data_loader())
        for micro_batches in zip(*[loaded] * self.micro_batches, strict=True):
            for _, faults in micro_batches:
                self.faults.update(fault.cause for fault in faults)
            yield [batch for batch, _ in micro_batches]

    def _data_loader(self) -> DataLoader:
        options = {}
        if self.workers:
            # Not forked from this process, whose threads (collectives, tokenizers) may hold locks at that moment.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["__main__", __name__])
            options = {"multiprocessing_context": context, "prefetch_factor": _PREFETCHED}
        return DataLoader(
            self._loader,
            batch_size=None,
            sampler=self._shares(),
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            worker_init_fn=_prepare_worker,
            generator=torch.Generator(),  # its seeds for workers, which use none, are not to come from the global one
            **options,
        )

    def _shares(self) -> Iterator[np.ndarray]:
        for iteration in range(self.start_iteration, self.iterations):
            yield from shares(self.order.batch(iteration), self.rank, self.world_size, self.micro_batches)


def _prepare_worker(worker: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Torch's watchdog waits for the death of the fork server, which itself waits for that of the workers.
    threading.Thread(target=_end_with_trainer, daemon=True).start()


def _end_with_trainer() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
