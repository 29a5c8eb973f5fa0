from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from growclip_ds.data.fault_limit import FEWEST_SAMPLES, FaultLimit
from growclip_ds.data.faults import Cause, Fault, FaultList
from growclip_ds.data.shards import index_shards
from growclip_ds.data.stream import TrainingStream
from growclip_ds.distributed import all_reduce_sum
from growclip_ds.errors import InputError
from tests.data.corpus import BROKEN, small_tokenizer, write_faulty, write_shards
from tests.group import Groups


def test_a_sample_is_listed_once_and_the_list_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "faults" / "rank_0.jsonl"
    for start in (1, 2):
        faults = FaultList(file, step=start)
        faults.add([Fault("größe", Cause.NO_PICTURE), Fault("b", Cause.EMPTY_CAPTION)], iteration=3)
        faults.add([Fault("b", Cause.EMPTY_CAPTION)], iteration=9)
        faults.add([])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0] == {"key": "größe", "cause": "no picture", "step": 1, "iteration": 3}
    assert [(line["key"], line["step"]) for line in lines] == [("größe", 1), ("b", 1), ("größe", 2), ("b", 2)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_fault_leaves_its_place_empty_on_any_number_of_ranks(tmp_path: Path, world_size: int) -> None:
    expected = write_faulty(tmp_path)
    paths = sorted(tmp_path.glob("*.tar"))
    index = index_shards(paths)
    assert len(index) == 48  # 18 of the first, in whose pairs a part may be broken; 10 before the cut; 20
    assert index.left_out == expected - Counter(cause for n, (cause, _) in BROKEN.items() if n < 5)
    lists = [tmp_path / f"rank_{rank}.jsonl" for rank in range(world_size)]
    streams = [
        TrainingStream(
            index,
            small_tokenizer(),
            image_size=16,
            global_batch_size=12,
            epochs=2,
            seed=1,
            rank=rank,
            world_size=world_size,
            fault_list=FaultList(lists[rank]),
        )
        for rank in range(world_size)
    ]
    ranks = [[[key for batch in batches for key in batch.keys] for batches in stream] for stream in streams]
    iterations = [[*itertools.chain(*parts)] for parts in zip(*ranks, strict=True)]
    assert len(iterations) == 8
    for epoch in (iterations[:4], iterations[4:]):
        seen = Counter(int(key) for keys in epoch for key in keys)
        assert seen == Counter([*range(7, 30), *range(40, 60)])
    met = sum((stream.faults for stream in streams), Counter())
    assert met == Counter(cause for n, (cause, _) in BROKEN.items() for _ in range(2) if n < 5)
    listed = [json.loads(line) for file in lists if file.exists() for line in file.read_text().splitlines()]
    assert {(entry["key"], entry["cause"]) for entry in listed} == {(f"{n:06d}", BROKEN[n][0]) for n in range(5)}


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_deleted_during_the_run(tmp_path: Path, workers: int) -> None:
    folder = write_shards(tmp_path, 60, per_shard=2)
    index = index_shards(sorted(folder.glob("*.tar")))
    options = {"image_size": 16, "global_batch_size": 4, "epochs": 2, "seed": 1, "rank": 0, "world_size": 1}
    stream = TrainingStream(index, small_tokenizer(), workers=workers, fault_list=FaultList(tmp_path / "f"), **options)
    sizes = []
    for (batch,) in stream:
        if not sizes:  # the shards that a process has open it can still read
            for path in folder.glob("*.tar"):
                path.unlink()
        sizes.append(len(batch))
    assert len(sizes) == 30
    assert set(stream.faults) == {Cause.UNREADABLE_SHARD}
    assert sum(sizes) + stream.faults[Cause.UNREADABLE_SHARD] == 120
    listed = [json.loads(line)["key"] for line in (tmp_path / "f").read_text().splitlines()]
    assert set(listed) <= set(index.shards)
    assert len(listed) == len(set(listed)) > 10


def check(limit: FaultLimit, faults: Counter, usable: int, samples: int) -> None:
    """An iteration of the training loop."""
    limit.check(all_reduce_sum(torch.tensor(limit.counts(faults, usable))).tolist(), samples)


def broken_after(iterations: int, samples: int, share: float, faults: int) -> tuple[int, str]:
    """The iteration before which a rank stops, and why; rank 1 meets one fault an iteration from `faults` on."""
    from growclip_ds.distributed import rank

    limit = FaultLimit(samples, share)
    for iteration in range(iterations):
        met = Counter({Cause.EMPTY_CAPTION: max(0, iteration - faults + 1)} if rank() == 1 else {})
        try:
            check(limit, met, usable=50, samples=100)
        except InputError as error:
            return iteration, str(error)
    return iterations, ""


def test_all_ranks_stop_at_the_same_iteration_for_the_same_cause(group: Groups) -> None:
    first, second = group(2).run(broken_after, 100, 1000, 0.005, 5)
    assert first == second
    iteration, message = first
    assert iteration == 10  # five of 1,000 are just allowed, six of 1,100 are too many
    assert message.startswith("6 broken samples among 1,100, more than the 0.50% of data.max_broken_share: 6 with capt")


def test_the_share_is_of_what_was_read_but_not_of_too_little() -> None:
    limit = FaultLimit(10**6, 0.01)
    one = Counter({Cause.BROKEN_PICTURE: 50})
    check(limit, one, usable=50, samples=100)
    assert limit.broken == one  # half of the first batch says little
    with pytest.raises(InputError, match=rf"101 broken samples among {FEWEST_SAMPLES:,}, more than the 1\.00%"):
        check(limit, Counter({Cause.BROKEN_PICTURE: 101}), usable=50, samples=100)
    limit = FaultLimit(10**6, 0.01)
    for read in range(1000):
        check(limit, Counter({Cause.BROKEN_PICTURE: read}), usable=99, samples=100)
    with pytest.raises(InputError, match=r"1,002 broken samples among 100,100"):
        check(limit, Counter({Cause.BROKEN_PICTURE: 1002}), usable=99, samples=100)


def test_a_batch_without_a_sample_stops_the_run_whatever_the_share() -> None:
    limit = FaultLimit(100, 1.0)
    with pytest.raises(InputError, match=r"no sample of a batch of 8 can be used; so far 8 with shard cannot be read"):
        check(limit, Counter({Cause.UNREADABLE_SHARD: 8}), usable=0, samples=8)
