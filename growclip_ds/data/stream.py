"""The training stream of a rank: its micro-batches of every iteration, whatever the number of ranks and workers."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from growclip_ds import distributed
from growclip_ds.data.batch import Batch, BatchDecoder, BatchLoader, LoadedBatch
from growclip_ds.data.faults import Cause, FaultList
from growclip_ds.data.order import TrainingOrder, shares
from growclip_ds.data.remote import Deal, RemoteOrder, RemoteShards
from growclip_ds.data.remote_loader import RemoteLoader
from growclip_ds.data.samples import may_open_many_files
from growclip_ds.data.shards import ShardIndex
from growclip_ds.data.tokens import Tokenizer
from growclip_ds.data.worker_processes import Flag, WorkerContext
from growclip_ds.errors import InputError
from growclip_ds.signals import kept_from_children

_PREFETCHED = 2  # micro-batches that each worker prefetches
_LOOK = 1.0  # seconds between a worker's checks whether it has to end
_GRACE = 3.0  # seconds that it then has to exit by itself; torch waits for 5

_log = logging.getLogger(__name__)

_Source = tuple[Dataset[LoadedBatch], Iterable[np.ndarray] | None]  # a dataset, and its sampler if it has one


class TrainingStream:
    """This rank's micro-batches of a phase.

    Iteration i takes the i-th global batch of the phase (see `TrainingOrder`); this rank gets a contiguous share of it,
    split into micro-batches. A broken sample leaves its place empty: its micro-batch is shorter, and all others are
    unchanged. For remote shards, `RemoteOrder` says which samples a rank gets.

    A data loading worker that dies is replaced, once; the batches it was working on are loaded again.

    Args:
        data: the samples to train on.
        tokenizer: the tokenizer of the captions.
        image_size: side of the square images in pixels.
        global_batch_size: samples per iteration, over all ranks and micro-batches.
        epochs: length of the phase.
        seed: seed of the order.
        micro_batches: micro-batches per rank and iteration.
        workers: data loading processes; 0: load in this process.
        start_iteration: the first iteration to yield; skipping those before it costs nothing.
        deals: for remote shards, the deals of the phase before `start_iteration`, the phase's first one first.
        pin_memory: whether to put batches into pinned memory, for asynchronous copies to a GPU.
        exact: whether to decode images bit-identically to Pillow; see `decode_picture`.
        fault_list: the list to append broken samples to; None: they are only counted.
        rank, world_size: this process's, if not those of torch.distributed.

    Attributes:
        samples: N, samples per epoch.
        iterations: iterations of the whole phase.
        deals: for remote shards, the deals to pass to a stream that resumes the phase.
        faults: number of broken samples that this rank has met so far, by cause.
        dead_workers: number of workers that have died so far.

    Raises:
        InputError: the global batch is not divisible by ranks × micro-batches.
    """

    def __init__(
        self,
        data: ShardIndex | RemoteShards,
        tokenizer: Tokenizer,
        *,
        image_size: int,
        global_batch_size: int,
        epochs: int,
        seed: int,
        micro_batches: int = 1,
        workers: int = 0,
        start_iteration: int = 0,
        deals: Sequence[Deal] = (),
        pin_memory: bool = False,
        exact: bool = False,
        fault_list: FaultList | None = None,
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
        self.deals = [*deals, Deal(start_iteration, self.world_size, micro_batches, max(1, workers))]
        decoder = BatchDecoder(tokenizer, image_size, exact)
        self.order: TrainingOrder | RemoteOrder
        if isinstance(data, ShardIndex):
            self.order = TrainingOrder(len(data), global_batch_size, epochs, seed)
            self._source = partial(self._from_shards, self.order, BatchLoader(data, decoder))
        else:
            self.order = RemoteOrder(data, global_batch_size, epochs, seed, self.deals)
            self._source = partial(self._from_afar, self.order, decoder)
        self.samples = len(data)
        self.iterations = self.order.iterations
        self.start_iteration = start_iteration
        self.micro_batches = micro_batches
        self.workers = workers
        self.pin_memory = pin_memory
        self.faults: Counter[Cause] = Counter()
        self.dead_workers = 0
        self._fault_list = fault_list

    def __iter__(self) -> Iterator[list[Batch]]:
        """Yields this rank's micro-batches of each iteration in turn; the workers end with the iterator.

        Raises:
            InputError: a second worker has died.
        """
        iteration, loaded = self.start_iteration, None
        while iteration < self.iterations:
            try:
                if loaded is None:
                    with kept_from_children():
                        loaded = iter(self._data_loader(iteration))
                micro_batches = [next(loaded) for _ in range(self.micro_batches)]
            except (RuntimeError, OSError, EOFError) as error:
                if not self.workers or not _is_death(error):
                    raise
                self._replace_worker(iteration, error)
                loaded = None
                continue
            faults = [fault for _, faults in micro_batches for fault in faults]
            self.faults.update(fault.cause for fault in faults)
            iteration += 1
            if self._fault_list is not None:
                self._fault_list.add(faults, iteration=iteration)
            yield [batch for batch, _ in micro_batches]

    def _replace_worker(self, iteration: int, error: Exception) -> None:
        self.dead_workers += 1
        if self.dead_workers > 1:
            raise InputError(
                f"a data loading worker of rank {self.rank} has died for the second time, at iteration {iteration + 1} "
                f"({error}); usually for lack of memory: use fewer data.workers"
            ) from error
        _log.warning("rank %d: %s at iteration %d; it is replaced", self.rank, error, iteration + 1)

    def _data_loader(self, iteration: int) -> DataLoader:
        options: dict[str, Any] = {}
        if self.workers:
            context = WorkerContext(preload=["__main__", __name__])
            options = {
                "multiprocessing_context": context,
                "prefetch_factor": _PREFETCHED,
                "worker_init_fn": partial(_prepare_worker, context.end),
            }
        dataset, sampler = self._source(iteration)
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # so that the workers' seeds, unused, do not advance the global generator
            **options,
        )

    def _from_shards(self, order: TrainingOrder, loader: BatchLoader, start: int) -> _Source:
        batches = map(order.batch, range(start, self.iterations))
        return loader, chain.from_iterable(
            shares(batch, self.rank, self.world_size, self.micro_batches) for batch in batches
        )

    def _from_afar(self, order: RemoteOrder, decoder: BatchDecoder, start: int) -> _Source:
        return RemoteLoader(order, decoder, self.rank, start), None


def _is_death(error: Exception) -> bool:
    """Whether an error of torch's data loader means that a worker process has died, not that it has raised."""
    if isinstance(error, RuntimeError):
        # The pinning thread exits when it receives a batch of a dead worker.
        return re.match(r"(DataLoader worker \(pid.*\)|Pin memory thread) exited unexpectedly", str(error)) is not None
    return " in DataLoader worker process " not in str(error)  # a batch could not be fetched from its worker


def _prepare_worker(end: Flag, worker: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    may_open_many_files()
    # Torch's watchdog waits for the fork server to die, which itself waits for the workers.
    threading.Thread(target=_end_with_trainer, args=(end,), daemon=True).start()


def _end_with_trainer(end: Flag) -> None:
    """Ends this worker once its trainer is gone or wants it to end, even if it is waiting for a shard."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None  # this is a worker
    while trainer.is_alive() and not end.is_set():
        trainer.join(_LOOK)
    trainer.join(_GRACE)
    os._exit(0 if end.is_set() else 1)
