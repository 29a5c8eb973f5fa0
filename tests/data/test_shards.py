from __future__ import annotations

import pickle
import tarfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest
import torch
import webdataset

from growclip_ds.data.faults import BrokenSample, Cause
from growclip_ds.data.samples import ShardReader, captions
from growclip_ds.data.shards import ShardIndex, concatenate, index_shards
from growclip_ds.errors import InputError
from tests.data.corpus import caption, pair, picture, write_shard, write_shards
from tests.group import Groups


def read_all(index: ShardIndex) -> list[tuple[str, bytes, bytes]]:
    reader = ShardReader(index)
    return [tuple(reader.read(position)) for position in range(len(index))]


def write_members(path: Path, members: list[tuple[str, bytes]], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    return path


def test_the_samples_are_webdatasets_own(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, samples=25)
    paths = sorted(map(str, folder.glob("*.tar")))
    expected = [
        (sample["__key__"], sample["jpg"], sample["txt"])
        for sample in webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)
    ]
    index = index_shards(paths)
    assert index.ends.tolist() == [10, 20, 25]
    assert read_all(index) == expected
    assert len(expected) == 25


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_grouping_follows_webdataset(tmp_path: Path, tar_format: int) -> None:
    deep = "/".join(["folder" * 5] * 4)  # over the 100 characters of a header's name field
    members = [
        ("README.md", b"about"),
        ("a/1.TXT", b"caption before the picture, in capitals"),
        ("a/1.json", b"{}"),
        ("a/1.JPG", b"one"),
        ("b/1.jpg", b"another folder, another sample"),
        ("b/1.txt", b"two"),
        ("2.jpeg", b"jpeg"),
        ("2.png", b"a second picture"),
        ("2.txt", b"three"),
        ("3.seg.png", b"no picture of ours"),
        ("3.txt", b"left out"),
        ("4.webp", b"left out"),
        ("5.cls", b"neither"),
        ("__meta__/6.jpg", b"webdataset's own"),
        ("no-extension", b""),
        (f"{deep}/7.png", b"long"),
        (f"{deep}/7.txt", b"four"),
        ("8.webp", b"apart from its caption"),
        ("9.png", b"nine"),
        ("9.txt", b"five"),
        ("8.txt", b"apart from its picture"),
    ]
    index = index_shards([write_members(tmp_path / "0.tar", members, tar_format)])
    assert read_all(index) == [
        ("a/1", b"one", b"caption before the picture, in capitals"),
        ("b/1", b"another folder, another sample", b"two"),
        ("2", b"jpeg", b"three"),
        (f"{deep}/7", b"long", b"four"),
        ("9", b"nine", b"five"),
    ]
    assert index.left_out == Counter({Cause.NO_PICTURE: 2, Cause.NO_CAPTION: 2})


def test_keys_that_are_not_ascii(tmp_path: Path) -> None:
    index = index_shards([write_members(tmp_path / "0.tar", [("größe.jpg", b"p"), ("größe.txt", b"c")])])
    assert read_all(index) == [("größe", b"p", b"c")]


def test_a_sample_takes_sixteen_bytes(tmp_path: Path) -> None:
    index = index_shards(sorted(write_shards(tmp_path, samples=20).glob("*.tar")))
    assert index.places.nbytes == 16 * 20


def test_selecting_joining_and_pickling(tmp_path: Path) -> None:
    deep = "folder/" * 20
    parts = [
        index_shards(sorted(write_shards(tmp_path / "a", samples=12, per_shard=5, prefix="a").glob("*.tar"))),
        index_shards([write_shard(tmp_path / "b.tar", [pair(number, deep) for number in range(4)])]),
    ]
    everything = [sample for part in parts for sample in read_all(part)]
    index = concatenate(parts)
    assert read_all(index) == everything
    wanted = torch.arange(16) % 3 == 1
    wanted[5:10] = False  # a shard of which nothing is left
    chosen = pickle.loads(pickle.dumps(index.only(wanted)))
    assert read_all(chosen) == [sample for sample, keep in zip(everything, wanted.tolist(), strict=True) if keep]
    assert len(index.only(torch.zeros(16, dtype=torch.bool))) == 0


def test_many_shards_with_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("growclip_ds.data.samples._OPEN_SHARDS", 2)
    index = index_shards(sorted(write_shards(tmp_path, samples=12, per_shard=2).glob("*.tar")))
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = ShardReader(index)
    for position in [0, 11, 5, 1, 7, 3, 9, 0, 11]:
        assert reader.read(position).key == f"{position:06d}"
    assert len(list(Path("/proc/self/fd").iterdir())) - before == 2


def test_captions_leave_out_the_broken_ones(tmp_path: Path) -> None:
    samples = [pair(0), pair(1) | {"txt": b"\xff\xfe"}, pair(2) | {"txt": b" \n"}, pair(3) | {"txt": b" x\n"}]
    assert list(captions(index_shards([write_shard(tmp_path / "0.tar", samples)]))) == [caption(0), "x"]


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def overwrite(path: Path, start: int, data: bytes) -> None:
    old = path.read_bytes()
    path.write_bytes(old[:start] + data + old[start + len(data) :])


def third_member(path: Path) -> tarfile.TarInfo:
    with tarfile.open(path) as tar:
        return tar.getmembers()[2]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: cut(path, third_member(path).offset_data + 100),  # within a picture
        lambda path: cut(path, third_member(path).offset),  # between two samples
        lambda path: cut(path, third_member(path).offset + 100),  # within a header
        lambda path: overwrite(path, third_member(path).offset, b"\xaa" * 600),  # headers in the middle
        lambda path: cut(path, 0),
        lambda path: path.write_bytes(b"<html>404</html>"),
    ],
    ids=["cut picture", "cut between samples", "cut header", "damaged header", "empty file", "no tar"],
)
def test_a_damaged_tar_is_named(tmp_path: Path, damage) -> None:
    folder = write_shards(tmp_path, samples=30)
    damage(folder / "00001.tar")
    with pytest.raises(InputError, match=r"00001\.tar cannot be read as a tar .* fetch or write it again"):
        index_shards(sorted(folder.glob("*.tar")))


def test_shards_without_a_usable_sample(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", [{"__key__": "a", "jpg": b"p"}, {"__key__": "b", "txt": b"c"}])
    with pytest.raises(InputError, match=r"no usable sample in .*0\.tar.*1 with no caption, 1 with no picture"):
        index_shards([shard])


def test_a_shard_that_changes_after_it_was_indexed(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, samples=10, per_shard=5)
    index = index_shards(sorted(folder.glob("*.tar")))
    (folder / "00000.tar").unlink()
    cut(folder / "00001.tar", int(index.places[7, 0]) * 512 + 10)
    reader = ShardReader(index)
    for position in (0, 7, 8):
        with pytest.raises(BrokenSample) as error:
            reader.read(position)
        assert error.value.cause is Cause.UNREADABLE_SHARD
    assert reader.read(6).picture == picture(6)


def index_on_a_rank(folder: str) -> tuple[list[str], dict[Cause, int]] | str:
    try:
        index = index_shards(sorted(Path(folder).glob("*.tar")))
    except InputError as error:
        return str(error)
    return [sample[0] for sample in read_all(index)], dict(index.left_out)


def test_ranks_share_the_scanning_and_fail_alike(tmp_path: Path, group: Groups) -> None:
    folder = write_shards(tmp_path, samples=50)
    write_shard(folder / "00005.tar", [{"__key__": "lonely", "jpg": b"p"}])
    alone = index_on_a_rank(str(folder))
    assert alone == ([f"{number:06d}" for number in range(50)], {Cause.NO_CAPTION: 1})
    assert group(3).run(index_on_a_rank, str(folder)) == [alone] * 3
    cut(folder / "00004.tar", 700)
    first, *others = group(3).run(index_on_a_rank, str(folder))
    assert "00004.tar cannot be read" in first
    assert others == [first] * 2
