from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from growclip_ds.data.batch import Batch
from growclip_ds.data.faults import Cause
from growclip_ds.data.remote import RemoteShards
from growclip_ds.data.samples import captions
from growclip_ds.data.shards import ShardIndex, index_shards
from growclip_ds.data.stream import TrainingStream
from growclip_ds.data.subsets import Subset, open_subsets
from growclip_ds.data.tokens import Tokenizer, train_tokenizer
from growclip_ds.errors import InputError
from tests.data.corpus import pair, picture, small_tokenizer, write_shard, write_shards

OPENSTAX = Path(__file__).resolve().parents[3] / "shared" / "data" / "openstax"
SAMPLES = 31
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    folder = write_shards(tmp_path_factory.mktemp("shards"), SAMPLES)
    return index_shards(sorted(folder.glob("*.tar")))


def stream(index: ShardIndex | RemoteShards, tokenizer: Tokenizer, **options) -> TrainingStream:
    defaults = {"image_size": 16, "global_batch_size": 12, "epochs": 2, "seed": 3, "rank": 0, "world_size": 1}
    return TrainingStream(index, tokenizer, **(defaults | options))


def sequence(index: ShardIndex, tokenizer: Tokenizer, world_size: int, **options) -> list[list[str]]:
    """The keys of every global batch, put together from all ranks."""
    ranks = [list(stream(index, tokenizer, rank=r, world_size=world_size, **options)) for r in range(world_size)]
    return [
        [key for micro_batches in iteration for batch in micro_batches for key in batch.keys]
        for iteration in zip(*ranks, strict=True)
    ]


@pytest.fixture(scope="module")
def expected(index: ShardIndex, tokenizer: Tokenizer) -> list[list[str]]:
    return sequence(index, tokenizer, world_size=1)


def test_each_key_once_an_epoch_across_batches(expected: list[list[str]], index: ShardIndex, tokenizer) -> None:
    assert [len(keys) for keys in expected] == [12, 12, 12, 12, 12, 2]
    keys = list(itertools.chain(*expected))
    everything = {f"{number:06d}" for number in range(SAMPLES)}
    assert set(keys[:SAMPLES]) == set(keys[SAMPLES:]) == everything
    assert keys[:SAMPLES] != keys[SAMPLES:]
    made = stream(index, tokenizer)
    assert (made.samples, made.iterations) == (SAMPLES, 6)


@pytest.mark.parametrize(
    ("world_size", "micro_batches", "workers"),
    [
        *[(1, 3, 0), (2, 1, 0), (2, 3, 0), (3, 1, 0), (3, 2, 0), (4, 1, 0), (4, 3, 0), (1, 1, 2), (2, 2, 2)],
        *(pytest.param(ranks, 1, workers, marks=SLOW) for ranks in (1, 2, 3, 4) for workers in (1, 2, 3)),
    ],
)
def test_ranks_and_workers_do_not_change_the_order(
    expected: list[list[str]],
    index: ShardIndex,
    tokenizer: Tokenizer,
    world_size: int,
    micro_batches: int,
    workers: int,
) -> None:
    assert sequence(index, tokenizer, world_size, micro_batches=micro_batches, workers=workers) == expected


def test_a_short_last_batch_may_leave_a_rank_without_samples(index: ShardIndex, tokenizer: Tokenizer) -> None:
    last = [list(stream(index, tokenizer, rank=rank, world_size=4))[-1] for rank in range(4)]
    assert sorted(len(batch) for (batch,) in last) == [0, 0, 1, 1]
    (empty,) = next(batches for batches in last if not len(batches[0]))
    assert empty.images.shape == (0, 3, 16, 16)
    assert empty.text.num_captions == 0


@pytest.mark.parametrize(
    ("before", "after", "workers"), [(1, 2, 0), (2, 3, 0), (4, 1, 0), (3, 4, 0), pytest.param(2, 4, 2, marks=SLOW)]
)
def test_going_on_after_a_kill_with_another_number_of_ranks(
    expected: list[list[str]], index: ShardIndex, tokenizer: Tokenizer, before: int, after: int, workers: int
) -> None:
    first = sequence(index, tokenizer, before, workers=workers)[:3]
    rest = sequence(index, tokenizer, after, start_iteration=3, workers=2 - workers)
    assert first + rest == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_in_the_middle(
    expected: list[list[str]], index: ShardIndex, tokenizer: Tokenizer, workers: int
) -> None:
    resumed = stream(index, tokenizer, start_iteration=4, workers=workers)
    assert [batch.keys for (batch,) in resumed] == expected[4:]
    assert resumed.iterations == 6
    assert list(stream(index, tokenizer, start_iteration=6)) == []


def test_workers_deliver_the_same_pictures_and_tokens(index: ShardIndex, tokenizer: Tokenizer) -> None:
    def flat(workers: int) -> list[Batch]:
        return list(itertools.chain(*stream(index, tokenizer, workers=workers, epochs=1, micro_batches=2)))

    for here, there in zip(flat(0), flat(2), strict=True):
        assert torch.equal(here.images, there.images)
        assert torch.equal(here.text.ids, there.text.ids)
        assert torch.equal(here.text.cu_seqlens, there.text.cu_seqlens)
        assert here.text.max_seqlen == there.text.max_seqlen
        assert here.images.is_pinned() == torch.cuda.is_available()
    assert index.places.is_shared()  # one index for all workers, not a copy each


def test_the_stream_leaves_the_global_generator_alone(index: ShardIndex, tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(stream(index, tokenizer)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_samples_leave_their_places_empty(tmp_path: Path, tokenizer: Tokenizer, workers: int) -> None:
    broken = {2: {"jpg": picture(2)[:90]}, 5: {"txt": b"\xff"}, 6: {"jpg": b""}}
    samples = [pair(number) | broken.get(number, {}) for number in range(12)]
    index = index_shards([write_shard(tmp_path / "0.tar", samples)])
    whole = index_shards([write_shard(tmp_path / "1.tar", map(pair, range(12)))])
    options = {"global_batch_size": 4, "epochs": 2, "micro_batches": 2, "workers": workers}
    damaged = stream(index, tokenizer, **options)
    bad = {f"{number:06d}" for number in broken}
    for with_faults, without in zip(damaged, stream(whole, tokenizer, **options), strict=True):
        assert [[key for key in batch.keys if key not in bad] for batch in without] == [b.keys for b in with_faults]
    assert damaged.faults == Counter({Cause.BROKEN_PICTURE: 4, Cause.CAPTION_NOT_UTF8: 2})


def worker_processes() -> list[int]:
    return [process.pid for process in multiprocessing.active_children()]


def kill_a_worker(others: set[int]) -> None:
    os.kill(min(set(worker_processes()) - others), signal.SIGKILL)


def test_a_worker_that_dies_is_replaced_and_nothing_lost(index: ShardIndex, tokenizer: Tokenizer) -> None:
    expected = sequence(index, tokenizer, world_size=1, epochs=8)
    others = set(worker_processes())
    made = stream(index, tokenizer, epochs=8, workers=2)
    seen = []
    for (batch,) in made:
        seen.append(batch.keys)
        if len(seen) == 3:
            kill_a_worker(others)
    assert seen == expected
    assert made.dead_workers == 1


@pytest.mark.slow
def test_a_worker_that_dies_again_stops_the_run_with_the_cause(index: ShardIndex, tokenizer: Tokenizer) -> None:
    others = set(worker_processes())

    def train() -> None:
        for _ in stream(index, tokenizer, epochs=1000, workers=2):
            kill_a_worker(others)

    with pytest.raises(InputError, match=r"worker of rank 0 has died for the second time.*use fewer data\.workers"):
        train()


@pytest.mark.slow
def test_a_worker_that_streams_dies(tmp_path: Path, tokenizer: Tokenizer) -> None:
    paths = sorted(write_shards(tmp_path, SAMPLES).glob("*.tar"))
    shards = RemoteShards(tuple(f"pipe:cat {path}" for path in paths), (10, 10, 10, 1))
    expected = [batch.keys for (batch,) in stream(shards, tokenizer, epochs=8, workers=2)]
    others = set(worker_processes())
    seen = []
    for (batch,) in stream(shards, tokenizer, epochs=8, workers=2):
        seen.append(batch.keys)
        if len(seen) == 3:
            kill_a_worker(others)
    assert seen == expected


@pytest.mark.parametrize("how", ["closed", "dropped", "raised"])
def test_workers_end_with_the_iterator(index: ShardIndex, tokenizer: Tokenizer, how: str) -> None:
    others = set(worker_processes())  # of the test session
    iterator = iter(stream(index, tokenizer, workers=2, epochs=100))
    next(iterator)
    workers = set(worker_processes()) - others
    assert len(workers) == 2
    if how == "closed":
        iterator.close()
    elif how == "dropped":
        del iterator
    else:
        with pytest.raises(RuntimeError, match="training failed"):
            iterator.throw(RuntimeError("training failed"))
        del iterator
    gc.collect()
    deadline = time.monotonic() + 10
    while (alive := workers & set(worker_processes())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive


def train_forever(folder: str) -> None:
    index = index_shards(sorted(Path(folder).glob("*.tar")))
    for _ in stream(index, small_tokenizer(), workers=2, epochs=10**6):
        print(*sorted(process.pid for process in multiprocessing.active_children()), flush=True)


def test_workers_end_when_the_trainer_is_killed(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, samples=20)
    program = f"from tests.data.test_stream import train_forever; train_forever({str(folder)!r})"
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=root) as trainer:
        workers = [int(pid) for pid in trainer.stdout.readline().split()]
        trainer.kill()
        trainer.communicate()
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while (alive := [pid for pid in workers if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive


def is_alive(pid: int) -> bool:
    """Whether there is such a process, other than one that only waits for being reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("size", "world_size", "micro_batches", "multiple"), [(10, 3, 1, 3), (12, 2, 4, 8), (2, 4, 1, 4), (0, 1, 1, 1)]
)
def test_a_batch_that_the_ranks_cannot_divide(
    index: ShardIndex, tokenizer: Tokenizer, size: int, world_size: int, micro_batches: int, multiple: int
) -> None:
    with pytest.raises(InputError, match=f"batch of {size} cannot be divided among .* a multiple of {multiple}$"):
        stream(index, tokenizer, global_batch_size=size, world_size=world_size, micro_batches=micro_batches)


@pytest.mark.skipif(not OPENSTAX.is_dir(), reason="needs ../shared")
def test_real_shards(tmp_path: Path) -> None:
    for tar in OPENSTAX.glob("subset_[12]/*.tar"):  # links: nothing is to be written beside them
        link = tmp_path / tar.parent.name / tar.name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(tar)
    subsets = [Subset(f"part {part}", f"{tmp_path}/subset_{part}/*.tar") for part in (1, 2)]
    opened = open_subsets(subsets, held_out=20)
    assert sum(subset.samples for subset in opened.subsets) == len(opened.train) + 40
    assert not opened.train.left_out
    tokenizer = train_tokenizer(itertools.islice(captions(opened.train), 500), vocab_size=1000, context_length=77)
    made = TrainingStream(opened.train, tokenizer, image_size=32, global_batch_size=500, epochs=1, seed=0, workers=2)
    batches = list(itertools.chain(*made))
    keys = [key for batch in batches for key in batch.keys]
    assert len(keys) == len(set(keys)) == len(opened.train)
    assert not made.faults
    assert all(batch.text.max_seqlen <= 77 for batch in batches)
    assert torch.cat([batch.images for batch in batches]).float().std() > 20  # pictures, not blanks
