from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

import pytest

from growclip_ds.data.samples import ShardReader
from growclip_ds.data.shards import ShardIndex
from growclip_ds.data.subsets import (
    Subset,
    continue_subsets,
    find_shards,
    open_subsets,
    read_subsets,
    write_subsets,
)
from growclip_ds.errors import InputError
from tests.data.corpus import write_shard, write_shards
from tests.group import Groups


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("run [1]")  # with characters that mean something in a glob
    for name, samples in (("first", 30), ("second", 12), ("third", 11)):
        folder = write_shards(base / name, samples, prefix=f"{name}-")
        (folder / "00000_stats.json").write_text("{}")  # as img2dataset leaves it
    return base


@pytest.fixture
def base(written: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: relative patterns are those of shards in it."""
    monkeypatch.chdir(written)
    return written


def keys(index: ShardIndex) -> list[str]:
    reader = ShardReader(index)
    return [reader.read(position).key for position in range(len(index))]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("first", ["first/00000.tar", "first/00001.tar", "first/00002.tar"]),
        ("first/*", ["first/00000.tar", "first/00001.tar", "first/00002.tar"]),
        ("*/00001.tar", ["first/00001.tar", "second/00001.tar", "third/00001.tar"]),
        ("first/{00002..00001..-1}.tar", ["first/00002.tar", "first/00001.tar"]),
        ("{third,second}/0000[1-9].tar", ["third/00001.tar", "second/00001.tar"]),
        ("{first/00002.tar,second}", ["first/00002.tar", "second/00000.tar", "second/00001.tar"]),
    ],
)
def test_patterns(base: Path, pattern: str, expected: list[str]) -> None:
    assert find_shards(pattern) == [str(base / path) for path in expected]


def test_two_asterisks_match_folders_at_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("", "a", "a/b", "c/d/e"):
        (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / folder / "0.tar").touch()
    for pattern, expected in (
        ("data/**/*.tar", ["0.tar", "a/0.tar", "a/b/0.tar", "c/d/e/0.tar"]),
        ("data/*/*.tar", ["a/0.tar"]),
        ("data/a/**/0.tar", ["a/0.tar", "a/b/0.tar"]),
        ("data/*", ["0.tar"]),
    ):
        assert find_shards(pattern) == [str(tmp_path / "data" / path) for path in expected]


def test_an_absolute_pattern_does_not_depend_on_the_working_directory(base: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 5)
    for pattern in ("shards", "shards/*.tar", "shards/{00000..00000}.tar"):
        assert find_shards(str(tmp_path / pattern)) == [str(tmp_path / "shards/00000.tar")]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("missing", "there is no .*missing .*correct the path, or put the shards there"),
        ("first/{00000..00009}.tar", r"there is no .*first/00003\.tar "),
        ("first/*.json", r"no \.tar file matches 'first/\*\.json'"),
        ("empty", r"no \.tar file matches 'empty'"),
        ("first/{00000..", "unbalanced braces"),
    ],
)
def test_a_pattern_without_shards(base: Path, pattern: str, message: str) -> None:
    (base / "empty").mkdir(exist_ok=True)
    with pytest.raises(InputError, match=f"^data subset 'new': .*{message}"):
        open_subsets([Subset("new", pattern)])


def test_subsets_are_counted_and_joined_in_order(base: Path) -> None:
    opened = open_subsets([Subset("b", "second"), Subset("a", "first/*.tar", samples=30)])
    assert opened.subsets == (Subset("b", "second", 12), Subset("a", "first/*.tar", 30))
    assert keys(opened.train) == [f"second-{n:06d}" for n in range(12)] + [f"first-{n:06d}" for n in range(30)]
    assert len(opened.held_out) == 0


def test_held_out_pairs_are_not_trained_on_and_stay_when_a_subset_joins(base: Path) -> None:
    subsets = [Subset(name, name) for name in ("first", "second", "third")]
    steps = [open_subsets(subsets[:step], held_out=4, seed=7) for step in (1, 2, 3)]
    for step, opened in enumerate(steps, 1):
        train, held_out = keys(opened.train), keys(opened.held_out)
        assert len(held_out) == 4 * step
        assert not set(train) & set(held_out)
        assert len(set(train) | set(held_out)) == len(train) + len(held_out) == sum(s.samples for s in opened.subsets)
        assert keys(steps[-1].held_out)[: 4 * step] == held_out
        first = steps[-1].first(step)
        assert (first.subsets, keys(first.train), keys(first.held_out)) == (opened.subsets, train, held_out)
    assert keys(open_subsets(subsets[:1], held_out=4, seed=8).held_out) != keys(steps[0].held_out)


@pytest.mark.parametrize(
    ("subsets", "message"),
    [
        ([Subset("a", "first"), Subset("a", "second")], "two data subsets are called 'a'"),
        ([Subset("a", "first"), Subset("b", "first/00001.tar")], r"00001\.tar is in .* 'a' and again in 'b'"),
        ([Subset("a", "first"), Subset("b", "first/../first/00001.tar")], r"00001\.tar is in .* 'a' and again in 'b'"),
        ([Subset("a", "{first,first/00001.tar}")], r"is in data subset 'a' and again in 'a'"),
        ([Subset("a", "first", samples=31)], "'a' had 31 samples when it was counted and has 30 now; restore"),
    ],
)
def test_refused_lists(base: Path, subsets: list[Subset], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_subsets(subsets)


def test_many_shards_take_no_longer_each_than_few() -> None:
    start = time.process_time()
    with pytest.raises(InputError, match=r"https://host/0\.tar is in data subset 'a' and again in 'b'"):
        open_subsets([Subset("a", "https://host/{0..19999}.tar"), Subset("b", "https://host/0.tar")])
    assert time.process_time() - start < 3  # each compared with each took 15


def test_too_many_held_out(base: Path) -> None:
    with pytest.raises(InputError, match=r"12 pairs .* 'second', which has 12; lower selection.held_out"):
        open_subsets([Subset("second", "second")], held_out=12)


def open_on_a_rank(base: str, subsets: list[Subset]) -> tuple[list[str], list[str]] | str:
    try:
        with contextlib.chdir(base):
            opened = open_subsets(subsets, held_out=3)
    except InputError as error:
        return str(error)
    return keys(opened.train), keys(opened.held_out)


def test_every_rank_has_the_same_data_or_the_same_error(base: Path, tmp_path: Path, group: Groups) -> None:
    subsets = [Subset("second", "second"), Subset("first", "first")]
    alone = open_on_a_rank(str(base), subsets)
    assert group(2).run(open_on_a_rank, str(base), subsets) == [alone] * 2
    shard = write_shard(tmp_path / "useless.tar", [{"__key__": "a", "cls": b"1"}])
    for bad in ("missing", str(shard)):
        first, second = group(2).run(open_on_a_rank, str(base), [*subsets, Subset("bad", bad)])
        assert first == second
        assert first.startswith("data subset 'bad': ")


def test_the_list_on_disk(tmp_path: Path) -> None:
    subsets = [Subset("a", "a/{00000..00009}.tar", 10), Subset("größe", "/data/*.tar", 2)]
    path = tmp_path / "data.yaml"
    write_subsets(subsets[:1], path)
    write_subsets(subsets, path)
    assert read_subsets(path) == subsets
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file .*data.yaml"),
        ("- {name: a", "data.yaml.* is not valid YAML"),
        ("name: a", "data.yaml must list the run's data subsets"),
        ("- {name: a, samples: 3}", r"entry 0\.shards: Field required"),
        ("- {name: a, shards: b, samples: many}", r"entry 0\.samples"),
        ("- {name: a, shards: b, sample: 3}", r"entry 0\.sample: "),
    ],
)
def test_a_list_that_is_none(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "data.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_subsets(path)


def test_a_config_may_only_append() -> None:
    recorded = [Subset("a", "x", 10), Subset("b", "y", 20)]
    a, b, c = Subset("a", "x"), Subset("b", "y"), Subset("c", "z")
    assert continue_subsets(recorded, [a, b]) == recorded
    assert continue_subsets(recorded, [a, b, c]) == [*recorded, c]
    assert continue_subsets([], [a, b]) == [a, b]
    not_come = [*recorded, Subset("c", "mistyped")]  # its samples were never counted
    assert continue_subsets(not_come, [a, b, c]) == [*recorded, c]
    for changed, now in (
        ([b, a], "data subset 1 of this run is 'a' (x), but in the config it is 'b' (y)"),
        ([a, c, b], "data subset 2 of this run is 'b' (y), but in the config it is 'c' (z)"),
        ([a, Subset("b", "other")], "data subset 2 of this run is 'b' (y), but in the config it is 'b' (other)"),
        ([a], "data subset 2 of this run is 'b' (y), but in the config it is missing"),
    ):
        with pytest.raises(InputError, match=re.escape(now)):
            continue_subsets(recorded, changed)
