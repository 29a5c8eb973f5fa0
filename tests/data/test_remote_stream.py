from __future__ import annotations

import functools
import http.server
import io
import itertools
import json
import pickle
import shutil
import tarfile
import threading
import urllib.error
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from growclip_ds.data import remote_loader, remote_stream
from growclip_ds.data.faults import Cause, Fault
from growclip_ds.data.remote import Deal, Piece, RemoteShards
from growclip_ds.data.remote_stream import captions, count_samples, reopening, stream_piece, stream_shard
from growclip_ds.data.samples import Sample, ShardReader
from growclip_ds.data.shards import index_shards
from growclip_ds.data.stream import TrainingStream
from growclip_ds.data.subsets import Subset, open_subsets, read_subsets
from growclip_ds.data.tokens import Tokenizer
from growclip_ds.errors import InputError
from tests.data.corpus import caption, pair, small_tokenizer, write_shard
from tests.group import Groups
from tests.pipeline_runs import grow, write_data

COUNTS = (5, 11, 2, 8, 7)
KEYS = {f"{shard}-{n:06d}" for shard, count in enumerate(COUNTS) for n in range(count)}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    for shard, count in enumerate(COUNTS):
        write_shard(folder / f"{shard:05d}.tar", [pair(n, f"{shard}-") for n in range(count)])
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_stream, "PAUSE", 0.0)


def keys(shards: RemoteShards, tokenizer: Tokenizer, world_size: int, **options) -> list[list[str]]:
    """The keys of every global batch."""
    defaults = {"image_size": 16, "global_batch_size": 12, "epochs": 2, "seed": 3}
    streams = [
        TrainingStream(shards, tokenizer, rank=r, world_size=world_size, **defaults | options)
        for r in range(world_size)
    ]
    iterations = zip(*map(list, streams), strict=True)
    return [[key for batches in ranks for batch in batches for key in batch.keys] for ranks in iterations]


def test_counting_and_streaming_over_http(host: str, folder: Path, tokenizer: Tokenizer) -> None:
    opened = open_subsets([Subset("web", f"{host}/{{00000..00004}}.tar")])
    assert opened.subsets[0].samples == sum(COUNTS)
    assert opened.subsets[0].shard_samples == COUNTS
    assert isinstance(opened.train, RemoteShards)
    batches = keys(opened.train, tokenizer, world_size=2)
    assert [len(batch) for batch in batches] == [12, 12, 9] * 2
    for epoch in (batches[:3], batches[3:]):
        assert Counter(itertools.chain(*epoch)) == Counter(KEYS)


def test_stats_beside_a_shard_are_believed(host: str, folder: Path) -> None:
    stats = folder / "00002_stats.json"
    stats.write_text('{"count": 9, "successes": 4, "status_dict": {}}')
    assert count_samples([f"{host}/00002.tar", f"{host}/00003.tar"]) == (4, 8)
    stats.unlink()
    with pytest.raises(InputError, match=r"00009\.tar.*correct the URL"):
        count_samples([f"{host}/00009.tar"])


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (3, 0), (1, 2)])
def test_uneven_shards_and_any_number_of_ranks(
    folder: Path, tokenizer: Tokenizer, world_size: int, workers: int
) -> None:
    shards = RemoteShards(tuple(f"pipe:cat {path}" for path in sorted(folder.glob("*.tar"))), COUNTS)
    batches = keys(shards, tokenizer, world_size, workers=workers, micro_batches=2)
    assert [len(batch) for batch in batches] == [12, 12, 9] * 2
    assert Counter(itertools.chain(*batches[:3])) == Counter(KEYS) == Counter(itertools.chain(*batches[3:]))


def test_going_on_with_another_number_of_ranks(folder: Path, tokenizer: Tokenizer) -> None:
    shards = RemoteShards(tuple(f"pipe:cat {path}" for path in sorted(folder.glob("*.tar"))), COUNTS)
    straight = keys(shards, tokenizer, 2)
    again = keys(shards, tokenizer, 2, start_iteration=2, deals=[Deal(0, 2, 1, 1)])
    other = keys(shards, tokenizer, 3, start_iteration=2, deals=[Deal(0, 2, 1, 1)])
    for rest in (again, other):
        assert Counter(itertools.chain(*straight[:2], rest[0])) == Counter(KEYS)
        assert Counter(itertools.chain(*rest[1:])) == Counter(KEYS)


def test_what_a_shard_lacks_leaves_places_empty(folder: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    cut = tmp_path / "cut.tar"
    cut.write_bytes((folder / "00001.tar").read_bytes()[:9000])
    found = list(stream_piece(Piece(f"pipe:cat {cut}", 0, 11)))
    readable = sum(not isinstance(sample, Fault) for sample in found)
    assert len(found) == 11
    assert 0 < readable < 11
    assert found[readable:] == [Fault(f"pipe:cat {cut}", Cause.UNREADABLE_SHARD)] * (11 - readable)
    shards = RemoteShards(
        (f"pipe:cat {cut}", "pipe:cat /nowhere/0.tar", f"pipe:cat {folder / '00003.tar'}"), (11, 4, 8)
    )
    stream = TrainingStream(
        shards, tokenizer, image_size=16, global_batch_size=6, epochs=1, seed=0, rank=0, world_size=1
    )
    assert sum(len(batch) for (batch,) in stream) == 8 + readable
    assert stream.faults == Counter({Cause.UNREADABLE_SHARD: 11 + 4 - readable})
    assert stream.iterations == 4


def test_a_stream_that_breaks_off_is_opened_again(folder: Path, tmp_path: Path) -> None:
    whole, once = folder / "00001.tar", tmp_path / "opened"
    command = f"if test -e {once}; then cat {whole}; else touch {once}; head -c 9000 {whole}; fi"
    assert [sample.key for sample in stream_shard(f"pipe:{command}")] == [f"1-{n:06d}" for n in range(11)]


class Clock:
    """Stands in for `time`: nobody waits."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def monotonic(self) -> float:
        return sum(self.pauses)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(remote_stream, "time", clock)
    monkeypatch.setattr(remote_stream, "PAUSE", 1.0)
    return clock


def broken(items: int, error: Exception | None = None) -> Iterator[int]:
    yield from range(items)
    raise error or ConnectionResetError("reset by peer")


def test_a_stream_that_breaks_often_and_gets_on_is_read_to_its_end(clock: Clock) -> None:
    streams = [broken(items) for items in range(2, 60, 2)] + [iter(range(60))]
    assert list(reopening(lambda: streams.pop(0), "x")) == list(range(60))
    assert clock.pauses == [1.0] * 29


def test_a_stream_that_is_away_for_minutes_is_waited_for(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    streams = [broken(5)]

    def opened() -> Iterator[int]:
        if streams:
            return streams.pop()
        return broken(0) if clock.monotonic() < 200 else iter(range(9))

    assert list(reopening(opened, "x")) == list(range(9))
    assert clock.pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert caplog.messages == ["x: reset by peer; retrying for up to 5 minutes"]


def refusal(code: int) -> Exception:
    return urllib.error.HTTPError("http://x", code, "", None, None)


@pytest.mark.parametrize(
    ("items", "error", "pauses"),
    [
        (0, None, [1, 2, 4, 8, 16, 32, 60, 60, 60]),
        (0, refusal(503), [1, 2, 4, 8, 16, 32, 60, 60, 60]),
        (0, refusal(429), [1, 2, 4, 8, 16, 32, 60, 60, 60]),
        (0, refusal(404), [1, 2, 4]),  # a wrong address is soon told
        (7, None, [1, 2, 4, 8]),  # always at the same sample
    ],
)
def test_waiting_comes_to_an_end(clock: Clock, items: int, error: Exception | None, pauses: list[float]) -> None:
    given = []
    with pytest.raises(OSError, match=r"^x: "):
        given.extend(reopening(lambda: broken(items, error), "x"))
    assert clock.pauses == pauses


def test_streams_that_are_read_in_turn_are_not_waited_for_one_after_the_other(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_stream, "_stream_once", lambda url: broken(0))
    found = list(remote_loader._in_turn([[Piece(str(place), 0, 3)] for place in range(4)], 0))
    assert len(found) == 12
    assert clock.monotonic() < remote_stream.PATIENCE + 10 < 20 * 60 / 2  # `health.hang_minutes`


def member(path: Path, number: int) -> tarfile.TarInfo:
    with tarfile.open(path) as tar:
        return tar.getmembers()[number]


@pytest.mark.parametrize(("number", "where"), [(6, 0), (6, 100), (7, 0), (7, 100), (7, 515)])
def test_a_stream_that_is_cut_off_anywhere_is_opened_again(
    folder: Path, tmp_path: Path, number: int, where: int
) -> None:
    """Between two samples, in a header, between a picture and its caption; in a pipe, which hides it."""
    whole, once = folder / "00001.tar", tmp_path / "opened"
    cut = member(whole, number).offset + where
    url = f"pipe:if test -e {once}; then cat {whole}; else touch {once}; head -c {cut} {whole}; fi | cat"
    assert count_samples([url]) == (11,)
    once.unlink()
    found = list(stream_piece(Piece(url, 2, 9)))
    assert [getattr(sample, "cause", None) for sample in found] == [None] * 9
    assert [sample.key for sample in found] == [f"1-{n:06d}" for n in range(2, 11)]


def test_a_tar_without_an_end_is_read_but_not_counted(folder: Path, tmp_path: Path) -> None:
    whole, endless = folder / "00001.tar", tmp_path / "0.tar"
    last = member(whole, 21)
    endless.write_bytes(whole.read_bytes()[: last.offset_data + -(-last.size // 512) * 512])
    assert all(not isinstance(sample, Fault) for sample in stream_piece(Piece(f"pipe:cat {endless}", 0, 11)))
    with pytest.raises(InputError, match=r"0\.tar: the tar is cut off or damaged: empty header;"):
        count_samples([f"pipe:cat {endless}"])


@pytest.mark.parametrize("damage", ["damaged header", "zeroed header", "long end", "another tar behind it"])
def test_a_damaged_tar_is_read_but_not_counted(folder: Path, tmp_path: Path, damage: str) -> None:
    whole, damaged = (folder / "00001.tar").read_bytes(), tmp_path / "0.tar"
    fourth = member(folder / "00001.tar", 6).offset
    damaged.write_bytes(
        {
            "damaged header": whole[:fourth] + b"\xaa" * 512 + whole[fourth + 512 :],
            "zeroed header": whole[:fourth] + bytes(512) + whole[fourth + 512 :],
            "long end": whole[:fourth] + bytes(2_000_000),
            "another tar behind it": whole * 2,
        }[damage]
    )
    read = 11 if damage == "another tar behind it" else 3
    found = list(stream_piece(Piece(f"pipe:cat {damaged}", 0, 12)))
    assert [sample.key for sample in found[:read]] == [f"1-{n:06d}" for n in range(read)]
    assert found[read:] == [Fault(f"pipe:cat {damaged}", Cause.UNREADABLE_SHARD)] * (12 - read)
    with pytest.raises(InputError, match=r"0\.tar: the tar (is cut off or damaged|ends at byte .* more than padding)"):
        count_samples([f"pipe:cat {damaged}"])


def test_pairs_that_are_none(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", [{"__key__": "a", "jpg": b"p"}, {"__key__": "b", "txt": b"c"}, pair(3)])
    first, second, third = stream_shard(f"pipe:cat {shard}")
    assert (first, second) == (Fault("a", Cause.NO_CAPTION), Fault("b", Cause.NO_PICTURE))
    assert (third.key, third.caption) == ("000003", caption(3).encode())
    assert list(captions(RemoteShards((f"pipe:cat {shard}",), (3,)))) == [caption(3)]


def test_of_what_comes_twice_the_first_counts_as_in_a_local_shard(tmp_path: Path) -> None:
    members = [("a.jpg", b"1"), ("a.txt", b"one"), ("a.JPG", b"2"), ("b.txt", b"two"), ("b.png", b"3")]
    members += [("b.txt", b"again"), ("b.png", b"4")]
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    reader = ShardReader(index_shards([tmp_path / "0.tar"]))
    samples = [Sample("a", b"1", b"one"), Sample("b", b"3", b"two")]
    assert list(stream_shard(f"pipe:cat {tmp_path / '0.tar'}")) == samples
    assert [reader.read(position) for position in range(2)] == samples


class Trap:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path(self.path),))


def test_nothing_from_a_shard_is_unpickled(tmp_path: Path) -> None:
    trap = Trap()
    trap.path = str(tmp_path / "sprung")
    bomb = pickle.dumps(trap)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in [("a.jpg", b"p"), ("a.pyd", bomb), ("a.pickle", bomb), ("a.txt", b"c"), ("a.pth", bomb)]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert [sample.key for sample in stream_shard(f"pipe:cat {tmp_path / '0.tar'}")] == ["a"]
    assert not (tmp_path / "sprung").exists()


def test_lists_that_cannot_be_streamed(host: str, folder: Path, tmp_path: Path) -> None:
    web = Subset("web", f"{host}/00000.tar")
    shutil.copy(folder / "00001.tar", tmp_path / "0.tar")
    with pytest.raises(InputError, match="'near' is local, but others are streamed"):
        open_subsets([web, Subset("near", str(tmp_path))])
    with pytest.raises(InputError, match=r"3 pairs are to be held out .* set selection\.dataset"):
        open_subsets([web], held_out=3)
    with pytest.raises(InputError, match=r"'web' had 6 samples when it was counted and has 5 now"):
        open_subsets([Subset("web", web.shards, samples=6)])


def test_a_run_on_streamed_shards(tmp_path: Path, group: Groups) -> None:
    data, run = write_data(tmp_path), tmp_path / "run"
    tars = [sorted((data / f"scenes/train/subset_{step}").glob("*.tar")) for step in (1, 2)]
    overrides = tuple(f"data.subsets.{i}.shards=pipe:cat {tar}" for i, (tar,) in enumerate(tars))
    group(2).run(grow, data, run, 2, 1, overrides)
    record = json.loads((run / "step_1/train/phase.json").read_text())
    assert (record["samples"], record["iterations"], record["broken_samples"]) == (48, 2 * 3, {})
    (subset, *_) = read_subsets(run / "data.yaml")
    assert (subset.samples, subset.shard_samples) == (48, (48,))


def test_s3_is_fetched_by_its_program(folder, tmp_path, monkeypatch):
    """A program called `aws`, which is asked for an object and gives the file of its name."""
    program = tmp_path / "aws"
    program.write_text(
        f'#!/bin/sh\n[ "$1 $2 $3 $5" = "s3 cp --only-show-errors -" ] && exec cat "{tmp_path}/${{4##*/}}"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    shutil.copy(folder / "00002.tar", tmp_path / "0.tar")
    assert [sample.key for sample in stream_shard("s3://bucket/a/0.tar")] == ["2-000000", "2-000001"]
    assert count_samples(["s3://bucket/a/0.tar"]) == (2,)
    (tmp_path / "0_stats.json").write_text('{"successes": 7}')
    assert count_samples(["s3://bucket/a/0.tar"]) == (7,)
    with pytest.raises(OSError, match=r"missing\.tar"):
        list(stream_shard("s3://bucket/a/missing.tar"))
