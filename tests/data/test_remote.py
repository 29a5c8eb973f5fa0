from __future__ import annotations

from collections import Counter

import pytest

from growclip_ds.data.remote import PLACES, Deal, Piece, RemoteOrder, RemoteShards, is_remote

COUNTS = (7, 31, 1, 0, 12, 25, 9, 18)
SHARDS = RemoteShards(tuple(f"https://host/{n}.tar" for n in range(len(COUNTS))), COUNTS)
N = sum(COUNTS)


def in_turn(places: list[list[Piece]]) -> list[tuple[str, int]]:
    """The samples of a lane as they are read: (shard, place in it)."""
    streams = [[(p.url, p.skip + i) for p in pieces for i in range(p.count)] for pieces in places]
    return [stream[turn] for turn in range(len(streams[0])) for stream in streams if turn < len(stream)]


def read(order: RemoteOrder, start: int, stop: int) -> list[tuple[str, int]]:
    """What all lanes of the order's last deal read from iteration `start` to `stop`."""
    deal, taken = order.deals[-1], []
    for rank in range(deal.world_size):
        for worker in range(deal.workers):
            position, epoch, lane = 0, None, []
            turn = 0
            for iteration in range(deal.iteration, stop):
                if iteration // order.iterations_of_epoch != epoch:
                    epoch = iteration // order.iterations_of_epoch
                    lane, position = in_turn(order.lane(epoch, rank, worker)), 0
                for size in order.micro_batch_sizes(iteration, deal)[rank].tolist():
                    if turn % deal.workers == worker:
                        part = lane[position : position + size]
                        assert len(part) == size
                        position += size
                        if iteration >= start:
                            taken += part
                    turn += 1
    return taken


EVERYTHING = Counter((f"https://host/{n}.tar", i) for n, count in enumerate(COUNTS) for i in range(count))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(("micro_batches", "workers"), [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_each_sample_once_an_epoch_however_it_is_dealt(world_size: int, micro_batches: int, workers: int) -> None:
    order = RemoteOrder(SHARDS, 24, 2, seed=1, deals=[Deal(0, world_size, micro_batches, workers)])
    assert order.iterations == 2 * 5  # 103 samples, 24 an iteration: on all ranks the same, whatever the shards
    assert [order.batch_size(i) for i in range(5)] == [24, 24, 24, 24, 7]
    first, second = read(order, 0, 5), read(order, 5, 10)
    assert Counter(first) == Counter(second) == EVERYTHING
    assert first != second


@pytest.mark.parametrize("stops", [(2,), (1, 3), (3, 7), (6,)])
def test_a_run_that_goes_on_with_others_reads_what_was_not_read(stops: tuple[int, ...]) -> None:
    kinds = [(4, 1, 3), (2, 2, 2), (3, 2, 1)]
    deals: list[Deal] = []
    taken: list[list[tuple[str, int]]] = [[], []]
    for start, stop, kind in zip((0, *stops), (*stops, 10), kinds, strict=False):
        deals.append(Deal(start, *kind))
        order = RemoteOrder(SHARDS, 24, 2, seed=1, deals=deals)
        for epoch in (0, 1):
            first, last = max(start, 5 * epoch), min(stop, 5 * epoch + 5)
            if first < last:
                taken[epoch] += read(order, first, last)
    assert Counter(taken[0]) == Counter(taken[1]) == EVERYTHING


def test_a_lane_is_read_in_several_places_at_once() -> None:
    shards = RemoteShards(tuple(f"s3://{n}.tar" for n in range(40)), (10,) * 40)
    order = RemoteOrder(shards, 20, 1, seed=0, deals=[Deal(0, 1, 1, 1)])
    assert len({url for url, _ in in_turn(order.lane(0, 0, 0))[:20]}) == PLACES


def test_the_first_subsets() -> None:
    assert SHARDS.first(39) == RemoteShards(SHARDS.urls[:3], COUNTS[:3])
    assert len(SHARDS.first(N)) == N


@pytest.mark.parametrize(
    ("pattern", "remote"),
    [
        ("https://host/{0..3}.tar", True),
        ("s3://bucket/0.tar", True),
        ("pipe:cat 0.tar", True),
        ("data/pipe/0.tar", False),
        ("/https:/0.tar", False),
    ],
)
def test_addresses(pattern: str, remote: bool) -> None:
    assert is_remote(pattern) is remote
