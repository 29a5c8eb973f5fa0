from __future__ import annotations

import numpy as np
import pytest

from growclip_ds.data import order as order_module
from growclip_ds.data.order import EpochOrder, TrainingOrder, held_out_mask, permutation, shares
from growclip_ds.errors import InputError


def test_the_order_is_the_same_on_every_machine() -> None:
    assert permutation(10, seed=0, epoch=0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert permutation(10, seed=0, epoch=1).tolist() != permutation(10, seed=0, epoch=0).tolist()
    assert permutation(10, seed=1, epoch=0).tolist() != permutation(10, seed=0, epoch=0).tolist()


def test_every_place_is_equally_likely() -> None:
    first = np.array([permutation(4, seed, epoch)[0] for seed in range(40) for epoch in range(50)])
    counts = np.bincount(first, minlength=4)
    assert counts.sum() == 2000
    assert (abs(counts - 500) < 80).all()  # four standard deviations


@pytest.mark.parametrize(("samples", "batch_size"), [(10, 4), (12, 4), (3, 8), (1, 5), (7, 7)])
def test_each_sample_once_an_epoch_and_batches_run_on_across_its_end(samples: int, batch_size: int) -> None:
    order = TrainingOrder(samples, batch_size, epochs=3, seed=5)
    batches = [order.batch(iteration) for iteration in range(order.iterations)]
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert 0 < len(batches[-1]) <= batch_size
    assert [len(batch) for batch in batches] == [order.batch_size(i) for i in range(order.iterations)]
    sequence = np.concatenate(batches)
    assert len(sequence) == 3 * samples
    for epoch in range(3):
        assert sorted(sequence[epoch * samples : (epoch + 1) * samples]) == list(range(samples))


def test_a_batch_needs_none_before_it() -> None:
    straight, at_once = (TrainingOrder(10, 4, epochs=4, seed=2) for _ in range(2))
    batches = [straight.batch(iteration) for iteration in range(straight.iterations)]
    for iteration in (7, 2, 9, 0):
        np.testing.assert_array_equal(at_once.batch(iteration), batches[iteration])


@pytest.mark.parametrize(("epochs", "length", "iterations"), [(2, 60, 9), (1, 30, 5), (7, 210, 30), (0, 0, 0)])
def test_length_of_a_phase(epochs: int, length: int, iterations: int) -> None:
    order = TrainingOrder(30, 7, epochs, seed=0)
    assert order.length == length
    assert order.iterations == iterations
    assert sum(len(order.batch(iteration)) for iteration in range(iterations)) == length


@pytest.mark.parametrize("length", [0, 1, 5, 11, 12])
@pytest.mark.parametrize(("world_size", "micro_batches"), [(1, 1), (1, 3), (2, 2), (3, 1), (4, 3)])
def test_shares_are_contiguous_and_even(length: int, world_size: int, micro_batches: int) -> None:
    batch = np.arange(100, 100 + length)
    pieces = [piece for rank in range(world_size) for piece in shares(batch, rank, world_size, micro_batches)]
    assert len(pieces) == world_size * micro_batches
    np.testing.assert_array_equal(np.concatenate(pieces), batch)
    sizes = [len(piece) for piece in pieces]
    assert max(sizes) - min(sizes) <= 1


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 in windows of 16 to 31."""
    monkeypatch.setattr(order_module, "BLOCK_SAMPLES", 8)
    monkeypatch.setattr(order_module, "WINDOW_BLOCKS", 16)
    monkeypatch.setattr(order_module, "FEW_SAMPLES", 256)


@pytest.mark.parametrize("samples", [257, 1000, 1024, 1031])
def test_an_epoch_in_blocks_has_each_sample_once_and_any_part_at_once(small_blocks: None, samples: int) -> None:
    whole = EpochOrder(samples, seed=1, epoch=2).part(0, samples)
    assert sorted(whole) == list(range(samples))
    at_once = EpochOrder(samples, seed=1, epoch=2)
    for start, stop in [(samples - 9, samples), (0, 5), (samples // 2, samples // 2 + 120), (130, 130)]:
        np.testing.assert_array_equal(at_once.part(start, stop), whole[start:stop])
    for seed, epoch in [(1, 3), (2, 2)]:
        other = EpochOrder(samples, seed, epoch).part(0, samples)
        assert (other == whole).mean() < 0.05


def test_neighbours_come_from_all_over_and_reads_go_forward() -> None:
    samples, per_shard = 1_000_000, 10_000
    order = EpochOrder(samples, seed=0, epoch=0).part(0, samples)
    shards = order[:1536] // per_shard
    assert len(np.unique(shards)) > 85  # of 100 shards; a batch drawn at random has some from each
    assert np.bincount(shards).max() < 60
    far_apart = abs(np.diff(order[:10_000])) > 256
    assert far_apart.mean() > 0.98
    window = order[:65_536]
    window = (window - order_start(samples)) % samples
    blocks = np.unique(window // 256)
    assert len(blocks) <= 261  # 3907 blocks in 15 windows; each block is read front to back
    for block in blocks[:50]:
        inside = window[window // 256 == block]
        assert (np.diff(inside) > 0).all()


def order_start(samples: int) -> int:
    return EpochOrder(samples, seed=0, epoch=0)._first


def test_the_order_in_blocks_is_the_same_on_every_machine() -> None:
    assert EpochOrder(200_000, 0, 0).part(100_000, 100_004).tolist() == [178308, 106374, 194955, 193675]


def test_samples_of_an_epoch_in_blocks_are_shuffled_between_epochs() -> None:
    first, second = (EpochOrder(200_000, 0, epoch).part(0, 200_000) for epoch in (0, 1))
    places = np.empty((2, 200_000))
    places[0, first], places[1, second] = np.arange(200_000), np.arange(200_000)
    assert abs(np.corrcoef(places)[0, 1]) < 0.05


def test_held_out_pairs() -> None:
    mask = held_out_mask(100, 7, seed=3, subset_name="first")
    assert mask.sum() == 7
    np.testing.assert_array_equal(mask, held_out_mask(100, 7, seed=3, subset_name="first"))
    assert (mask != held_out_mask(100, 7, seed=4, subset_name="first")).any()
    assert (mask != held_out_mask(100, 7, seed=3, subset_name="second")).any()
    assert not held_out_mask(100, 0, seed=3, subset_name="first").any()
    with pytest.raises(InputError, match=r"100 pairs .* 'first', which has 100; lower selection.held_out"):
        held_out_mask(100, 100, seed=3, subset_name="first")
