"""A rank's micro-batches of remote shards, each filled by the data loading worker whose turn it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from torch.utils.data import IterableDataset, get_worker_info

from growclip_ds.data.batch import BatchDecoder, LoadedBatch
from growclip_ds.data.faults import Fault
from growclip_ds.data.remote import PLACES, Piece, RemoteOrder
from growclip_ds.data.remote_stream import Patience, stream_piece
from growclip_ds.data.samples import Sample


class RemoteLoader(IterableDataset):
    """A rank's micro-batches, assigned to its data loading workers in turn.

    Args:
        order: which worker reads which samples; its last deal has the current numbers of ranks and workers.
        decoder: decodes and tokenizes the samples.
        rank: the rank.
        start_iteration: the first iteration to yield, not before the last deal.
    """

    def __init__(self, order: RemoteOrder, decoder: BatchDecoder, rank: int, start_iteration: int) -> None:
        self.order, self.decoder, self.rank = order, decoder, rank
        self.start_iteration = start_iteration

    def __iter__(self) -> Iterator[LoadedBatch]:
        deal, order = self.order.deals[-1], self.order
        info = get_worker_info()
        first_turn = (self.start_iteration - deal.iteration) * deal.micro_batches
        # The loader asks worker 0 first, so that worker takes the lane whose turn it is.
        worker = ((0 if info is None else info.id) + first_turn) % deal.workers
        epochs = range(deal.iteration // order.iterations_of_epoch, -(-order.iterations // order.iterations_of_epoch))
        for epoch in epochs:
            start = max(deal.iteration, epoch * order.iterations_of_epoch)
            stop = min(order.iterations, (epoch + 1) * order.iterations_of_epoch)
            if stop <= self.start_iteration:
                continue
            first = max(start, self.start_iteration)
            passed = sum(self._sizes(range(start, first), worker))
            samples = _in_turn(order.lane(epoch, self.rank, worker), passed)
            for size in self._sizes(range(first, stop), worker):
                yield self.decoder(itertools.islice(samples, size))

    def _sizes(self, iterations: range, worker: int) -> Iterator[int]:
        """Number of samples of each micro-batch that a worker has in these iterations."""
        deal = self.order.deals[-1]
        for iteration in iterations:
            first_turn = (iteration - deal.iteration) * deal.micro_batches
            sizes = self.order.micro_batch_sizes(iteration, deal)[self.rank].tolist()
            yield from (size for turn, size in enumerate(sizes, first_turn) if turn % deal.workers == worker)


def _in_turn(places: Sequence[Sequence[Piece]], passed: int) -> Iterator[Sample | Fault]:
    """Yields the samples of a lane, from its places in turn, after the first `passed` samples."""
    patience = Patience()
    streams = [
        itertools.chain.from_iterable(
            stream_piece(piece, patience) for piece in _after(place, -(-(passed - number) // PLACES))
        )
        for number, place in enumerate(places)
    ]
    for turn in itertools.count(passed):
        sample = next(streams[turn % PLACES], None)
        if sample is None:
            return
        yield sample


def _after(pieces: Sequence[Piece], passed: int) -> Iterator[Piece]:
    """The pieces without their first `passed` samples."""
    for piece in pieces:
        skipped = min(max(0, passed), piece.count)
        passed -= skipped
        if skipped < piece.count:
            yield Piece(piece.url, piece.skip + skipped, piece.count - skipped)
