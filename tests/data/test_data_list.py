from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from braceexpand import braceexpand

from growclip_ds.cli.program import main
from growclip_ds.config.config import load_config
from growclip_ds.data import data_list
from growclip_ds.data.data_list import add_subset, extend_subset, one_pattern
from growclip_ds.data.subsets import Subset, count_subsets, find_shards, open_subsets, read_subsets, write_subsets
from growclip_ds.errors import InputError
from tests.data.corpus import write_faulty, write_shards


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, samples in (("a", 30), ("b", 12)):
        write_shards(tmp_path / name, samples, prefix=f"{name}-")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_subsets_are_appended_and_counted(base: Path) -> None:
    file = base / "list.yaml"
    add_subset(file, "first", ["a"])
    added = add_subset(file, "second", ["b/00000.tar", "b/00001.tar"])
    assert added == read_subsets(file)
    assert added == [
        Subset("first", str(base / "a"), 30),
        Subset("second", str(base / "b" / "{00000..00001}.tar"), 12),
    ]


def test_a_run_takes_the_list(base: Path) -> None:
    add_subset(base / "list.yaml", "first", ["a"])
    add_subset(base / "list.yaml", "second", ["b"])
    (base / "config.yaml").write_text("data: {subsets: list.yaml, tokenizer: {vocab_size: 300}}\n")
    config = load_config("config.yaml", ["data.subsets.1.shards=elsewhere"])
    assert [(s.name, s.shards, s.samples) for s in config.data.subsets] == [
        ("first", str(base / "a"), 30),
        ("second", "elsewhere", 12),
    ]
    assert config.num_growth_steps == 2
    inline = load_config("config.yaml", ["data.subsets=[{name: x, shards: y}]"])
    assert load_config("config.yaml", ["data.subsets=list.yaml"]) == load_config("config.yaml")
    (base / "config.yaml").write_text(inline.to_yaml())
    assert load_config("config.yaml") == inline
    with pytest.raises(InputError, match=r"there is no file missing\.yaml"):
        load_config("config.yaml", ["data.subsets=missing.yaml"])


def test_duplicates_are_refused_and_the_list_stays(base: Path) -> None:
    file = base / "list.yaml"
    add_subset(file, "first", ["a"])
    before = file.read_bytes()
    (base / "link.tar").symlink_to(base / "a" / "00001.tar")
    shutil.copy(base / "a" / "00002.tar", base / "copy.tar")
    for name, shards, message in [
        ("first", "b", "already has a data subset 'first'; .* give --extend"),
        ("", "b", "a data subset of .* needs a name; give one"),
        ("again", "a/*.tar", r"00000\.tar is in data subset 'first' and again in 'again'"),
        ("linked", "link.tar", r"link\.tar is in data subset 'first' and again in 'linked'"),
        ("copied", "copy.tar", r"copy\.tar of data subset 'copied' is a copy of .*00002\.tar of 'first'"),
        ("none", "c", "there is no .*/c "),
    ]:
        with pytest.raises(InputError, match=message):
            add_subset(file, name, [shards])
    assert file.read_bytes() == before


def test_a_subset_that_has_changed_is_noticed(base: Path) -> None:
    add_subset(base / "list.yaml", "first", ["a"])
    (base / "a" / "00002.tar").unlink()
    with pytest.raises(InputError, match=r"'first' had 30 samples .* 20 now; .*remove its `samples` from the list"):
        add_subset(base / "list.yaml", "second", ["b"])
    write_subsets([Subset("first", str(base / "a"))], base / "list.yaml")
    assert [subset.samples for subset in add_subset(base / "list.yaml", "second", ["b"])] == [20, 12]


def test_unusable_samples_of_added_shards_are_told(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (base / "faulty").mkdir()
    write_faulty(base / "faulty")
    for shards, said in ((["a"], False), (["faulty/00000.tar", "faulty/00001.tar"], True), (["b"], False)):
        assert main(["data", "add", "list.yaml", shards[0], *shards]) == 0
        told = "1 with no caption, 1 with no picture, 10 with shard cut off or damaged; `growclip data check`"
        assert (f"unusable samples in the added shards: {told}" in capsys.readouterr().out) is said


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["/x/*.tar"], "/x/*.tar"),
        (["/x/{0..3}.tar"], "/x/{0..3}.tar"),
        (["/x/08.tar", "/x/09.tar", "/x/10.tar"], "/x/{08..10}.tar"),
        (["/x/1.tar", "/x/3.tar"], "{/x/1.tar,/x/3.tar}"),
        (["/x/1.tar", "/y/2.tar"], "{/x/1.tar,/y/2.tar}"),
        (
            [f"/x/{n:05d}.tar" for n in range(9000) if n not in (7, 9)],
            "{/x/{00000..00006}.tar,/x/00008.tar,/x/{00010..08999}.tar}",
        ),
        (["/x/98.tar", "/x/99.tar", "/x/100.tar"], "/x/{98..100}.tar"),
        (["/x/08.tar", *(f"/x/{n:02d}.tar" for n in range(9, 102))], "{/x/{08..99}.tar,/x/{100..101}.tar}"),
        (["/x/a.tar", "/x/b.tar", "/x/b/1"], "{/x/a.tar,/x/b.tar,/x/b/1}"),
        (["https://h/00.tar", "https://h/01.tar"], "https://h/{00..01}.tar"),
        (["pipe:cat {a,b}.tar"], "pipe:cat {a,b}.tar"),
    ],
)
def test_joining_patterns(patterns: list[str], expected: str) -> None:
    assert one_pattern(patterns) == expected
    if len(patterns) > 1:
        assert list(braceexpand(expected)) == patterns


@pytest.mark.parametrize("patterns", [["https://h/a.tar", "https://h/b.tar"], ["/x/{0..1}.tar", "/y/2.tar"]])
def test_patterns_that_cannot_be_joined(patterns: list[str]) -> None:
    with pytest.raises(InputError, match=r"one brace pattern|cannot be joined"):
        one_pattern(patterns)


def test_brackets_that_are_part_of_a_name(base: Path) -> None:
    write_shards(base / "odd [1]", 5, prefix="odd-")
    assert add_subset(base / "list.yaml", "odd", ["odd [1]"])[0].samples == 5


def test_a_subset_is_extended_again_and_again(base: Path) -> None:
    """Ten weeks, as the command line has them; the pattern stays flat, and the subset behind it stays as it was."""
    file = base / "list.yaml"
    add_subset(file, "first", ["a"])
    add_subset(file, "week", ["b/00000.tar"])
    (last,) = count_subsets([Subset("last", str(base / "b" / "00001.tar"))])
    add_subset(file, "last", ["b/00001.tar"])
    for week in range(10):
        folder = write_shards(base / f"w{week}", 15, prefix=f"{week}-")
        given = folder if week == 0 else folder / "*.tar" if week == 1 else folder / "{00000..00001}.tar"
        assert main(["data", "add", str(file), "week", str(given), "--extend"]) == 0
    first, extended, kept = read_subsets(file)
    parts = ["b/00000.tar", "w0", "w1/*.tar", *(f"w{week}/{{00000..00001}}.tar" for week in range(2, 10))]
    assert extended == Subset("week", f"{base}/{{{','.join(parts)}}}", 10 + 10 * 15)
    assert (first, kept) == (Subset("first", str(base / "a"), 30), last)
    assert [Path(shard).relative_to(base).parts[0] for shard in find_shards(extended.shards)] == (
        ["b"] + [f"w{week}" for week in range(10) for _ in range(2)]
    )
    assert len(open_subsets([first, extended, kept]).train) == 30 + 160 + 2  # as a run opens them


def test_shards_of_one_folder_extend_a_subset(base: Path) -> None:
    add_subset(base / "list.yaml", "first", ["a/00000.tar", "a/00002.tar"])
    (extended,) = extend_subset(base / "list.yaml", "first", ["a/00001.tar"])
    assert extended == Subset("first", f"{base}/a/{{00000.tar,00002.tar,00001.tar}}", 30)


def test_remote_shards_extend_a_subset(base: Path) -> None:
    """What was counted before is not streamed again."""
    file, log = base / "list.yaml", base / "streamed"
    write_shards(base / "c", 25, prefix="c-")

    def shards(folder: str, last: int) -> str:
        return f"pipe:echo {folder} >> {log}; cat {base}/{folder}/{{00000..{last:05d}}}.tar"

    add_subset(file, "first", [shards("a", 2)])
    (base / "streamed").unlink()
    old, new = shards("a", 2), shards("b", 1)
    (extended,) = extend_subset(file, "first", [new])
    assert (extended.samples, extended.shard_samples) == (42, (10, 10, 10, 10, 2))
    assert find_shards(extended.shards) == find_shards(old) + find_shards(new)
    (extended,) = extend_subset(file, "first", [shards("c", 2)])
    assert (extended.samples, extended.shard_samples) == (67, (10, 10, 10, 10, 2, 10, 10, 5))
    assert extended.shards.count(",") == 2
    assert read_subsets(file) == [extended]
    assert log.read_text().split() == ["b", "b", "c", "c", "c"]
    assert count_subsets([extended]) == (extended,)


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        ("https://h/x/{0..1}.tar", "https://h/y/{0..2}.tar", "https://h/{x/{0..1}.tar,y/{0..2}.tar}"),
        ("https://h/{x/{0..1}.tar,y.tar}", "https://h/{3..4}.tar", "https://h/{x/{0..1}.tar,y.tar,{3..4}.tar}"),
        ("s3://one/{a,b}/0.tar", "s3://two/0.tar", "s3://{one/{a,b}/0.tar,two/0.tar}"),
        ("pipe:cat {a,b}", "pipe:cat c", "pipe:{cat a,cat b,cat c}"),
    ],
)
def test_patterns_of_addresses_become_one(
    first: str, second: str, joined: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("growclip_ds.data.subsets.count_samples", lambda urls, progress: (7,) * len(urls))
    add_subset(tmp_path / "list.yaml", "first", [first])
    (extended,) = extend_subset(tmp_path / "list.yaml", "first", [second])
    assert extended.shards == joined
    assert find_shards(joined) == find_shards(first) + find_shards(second)


def test_extensions_that_are_refused_leave_the_list(base: Path) -> None:
    file = base / "list.yaml"
    add_subset(file, "first", ["a"])
    add_subset(file, "second", ["b/00000.tar"])
    shutil.copy(base / "a" / "00002.tar", base / "copy.tar")
    write_shards(base / "odd, c", 5, prefix="c-")
    before = file.read_bytes()
    for name, shards, message in [
        ("third", "b/00001.tar", r"list\.yaml has no data subset 'third' to extend; leave out --extend"),
        ("second", "a/00001.tar", r"00001\.tar is in data subset 'first' and again in 'second \(extension\)'"),
        ("second", "b/*.tar", r"b/00000\.tar is in data subset 'second' and again in 'second \(extension\)'"),
        ("second", "copy.tar", r"copy\.tar of data subset 'second \(extension\)' is a copy of .* of 'first'"),
        ("second", "missing", "there is no .*/missing "),
        ("second", "odd, c", "cannot be written as one pattern; append the new shards as a data subset of their own"),
        ("second", "https://h/0.tar", "cannot be written as one pattern"),
    ]:
        with pytest.raises(InputError, match=message):
            extend_subset(file, name, [shards])
        assert file.read_bytes() == before
    (base / "a" / "00002.tar").unlink()
    with pytest.raises(InputError, match="'first' had 30 samples when it was counted and has 20 now"):
        extend_subset(file, "second", ["b/00001.tar"])
    assert file.read_bytes() == before
    with pytest.raises(InputError, match="none has no data subset 'first' to extend"):
        extend_subset(base / "none", "first", ["a"])
    assert not (base / "none").exists()


def meanwhile(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Has the list changed by another process while shards are first counted."""
    changes = [change]

    def count(*arguments: Any, **options: Any) -> Sequence[Subset]:
        counted = count_subsets(*arguments, **options)
        if changes:
            changes.pop()()
        return counted

    monkeypatch.setattr(data_list, "count_subsets", count)


def test_subsets_that_are_added_at_once_are_all_kept(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, log = base / "list.yaml", base / "streamed"
    remote = f"pipe:echo x >> {log}; cat {base}/a/{{00000..00002}}.tar"
    meanwhile(monkeypatch, lambda: add_subset(file, "other", [f"pipe:cat {base}/b/{{00000..00001}}.tar"]))
    added = add_subset(file, "first", [remote])
    assert added == read_subsets(file)
    assert [(subset.name, subset.samples) for subset in added] == [("other", 12), ("first", 30)]
    assert len(log.read_text().split()) == 3  # counted once


@pytest.mark.parametrize(
    ("name", "shards", "message"),
    [
        ("first", "b", "already has a data subset 'first'"),
        ("other", "a/00001.tar", r"00001\.tar is in data subset 'other' and again in 'first'"),
    ],
)
def test_what_another_process_has_added_is_not_added_again(
    base: Path, monkeypatch: pytest.MonkeyPatch, name: str, shards: str, message: str
) -> None:
    file = base / "list.yaml"
    meanwhile(monkeypatch, lambda: add_subset(file, name, [shards]))
    with pytest.raises(InputError, match=message):
        add_subset(file, "first", ["a"])
    assert [subset.name for subset in read_subsets(file)] == [name]


def test_a_subset_that_is_extended_twice_at_once_has_both(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = base / "list.yaml"
    add_subset(file, "first", ["a/00000.tar"])
    meanwhile(monkeypatch, lambda: extend_subset(file, "first", ["a/00001.tar"]))
    assert extend_subset(file, "first", ["b/00000.tar"]) == read_subsets(file)
    (subset,) = read_subsets(file)
    assert subset == Subset("first", f"{base}/{{a/00000.tar,a/00001.tar,b/00000.tar}}", 30)


def test_a_list_is_changed_by_one_process_at_a_time(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(subsets: Sequence[Subset], file: Path) -> None:
        time.sleep(0.05)
        write_subsets(subsets, file)

    monkeypatch.setattr(data_list, "write_subsets", write)
    file, tars = base / "lists" / "list.yaml", [*base.glob("[ab]/*.tar")]
    with ThreadPoolExecutor(len(tars)) as pool:
        list(pool.map(lambda tar: add_subset(file, tar.parent.name + tar.stem, [str(tar)]), tars))
    assert len(read_subsets(file)) == len(tars) == 5
    assert [path.name for path in file.parent.iterdir()] == ["list.yaml"]
