from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from growclip_ds.config.config import load_config
from growclip_ds.data.data_list import add_subset, one_pattern
from growclip_ds.data.subsets import Subset, read_subsets
from growclip_ds.errors import InputError
from tests.data.corpus import write_shards


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
        ("first", "b", "two data subsets are called 'first'"),
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
    with pytest.raises(InputError, match="'first' had 30 samples when it was counted and has 20 now"):
        add_subset(base / "list.yaml", "second", ["b"])


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["/x/*.tar"], "/x/*.tar"),
        (["/x/{0..3}.tar"], "/x/{0..3}.tar"),
        (["/x/08.tar", "/x/09.tar", "/x/10.tar"], "/x/{08..10}.tar"),
        (["/x/1.tar", "/x/3.tar"], "{/x/1.tar,/x/3.tar}"),
        (["/x/1.tar", "/y/2.tar"], "{/x/1.tar,/y/2.tar}"),
        (["https://h/00.tar", "https://h/01.tar"], "https://h/{00..01}.tar"),
        (["pipe:cat {a,b}.tar"], "pipe:cat {a,b}.tar"),
    ],
)
def test_joining_patterns(patterns: list[str], expected: str) -> None:
    assert one_pattern(patterns) == expected


@pytest.mark.parametrize("patterns", [["https://h/a.tar", "https://h/b.tar"], ["/x/{0..1}.tar", "/y/2.tar"]])
def test_patterns_that_cannot_be_joined(patterns: list[str]) -> None:
    with pytest.raises(InputError, match=r"one brace pattern|cannot be joined"):
        one_pattern(patterns)


def test_brackets_that_are_part_of_a_name(base: Path) -> None:
    write_shards(base / "odd [1]", 5, prefix="odd-")
    assert add_subset(base / "list.yaml", "odd", ["odd [1]"])[0].samples == 5
