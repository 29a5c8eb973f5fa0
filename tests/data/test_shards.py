from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import tarfile
from collections import Counter
from io import BytesIO
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
import webdataset

from growclip_ds.data import samples
from growclip_ds.data.faults import BrokenSample, Cause, Fault
from growclip_ds.data.samples import ShardReader, captions
from growclip_ds.data.scan import scan
from growclip_ds.data.shards import ShardIndex, collect, index_shards, open_shards
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
    paths = sorted(write_shards(tmp_path / "a", samples=12, per_shard=5, prefix="a").glob("*.tar"))
    paths.append(write_shard(tmp_path / "b.tar", [pair(number, deep) for number in range(4)]))
    opened = open_shards(paths)
    everything = read_all(collect(opened))
    assert [key for key, _, _ in everything] == [f"a{n:06d}" for n in range(12)] + [f"{deep}{n:06d}" for n in range(4)]
    wanted = torch.arange(16) % 3 == 1
    wanted[5:10] = False  # a shard of which nothing is left
    chosen = pickle.loads(pickle.dumps(collect(opened, wanted)))
    kept = [sample for sample, keep in zip(everything, wanted.tolist(), strict=True) if keep]
    assert read_all(chosen) == kept
    assert len(collect(opened, torch.zeros(16, dtype=torch.bool))) == 0
    first = collect(opened).first(7)
    assert read_all(first) == everything[:7]


def test_the_index_is_shared_memory_and_its_first_part_no_copy(tmp_path: Path) -> None:
    index = index_shards(sorted(write_shards(tmp_path, samples=20).glob("*.tar")))
    assert index.places.is_shared()
    first = index.first(13)
    assert first.places.data_ptr() == index.places.data_ptr()
    assert len(ForkingPickler.dumps(first)) < 2000 + sum(map(len, index.shards))  # a handle, not the samples


def test_many_shards_with_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (8, 8))
    index = index_shards(sorted(write_shards(tmp_path, samples=12, per_shard=2).glob("*.tar")))
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = ShardReader(index)
    for position in [0, 11, 5, 1, 7, 3, 9, 0, 11]:
        assert reader.read(position).key == f"{position:06d}"
    assert len(list(Path("/proc/self/fd").iterdir())) - before == 2


def test_captions_leave_out_the_broken_ones(tmp_path: Path) -> None:
    samples = [pair(0), pair(1) | {"txt": b"\xff\xfe"}, pair(2) | {"txt": b" \n"}, pair(3) | {"txt": b" x\n"}]
    assert list(captions(index_shards([write_shard(tmp_path / "0.tar", samples)]))) == [caption(0), "x"]


def test_captions_are_read_without_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = picture(width=400, height=300)
    paths = [write_shard(tmp_path / f"{n}.tar", [pair(n) | {"jpg": large}, pair(n + 9)]) for n in range(3)]
    index, read, sizes = index_shards(paths), os.pread, []
    monkeypatch.setattr(os, "pread", lambda file, size, start: sizes.append(size) or read(file, size, start))
    assert list(captions(index)) == [caption(number) for number in (0, 9, 1, 10, 2, 11)]
    assert sum(sizes) < len(large)


@pytest.mark.parametrize("tar_format", ["gnu", "pax"])
def test_of_members_without_their_zeros_only_they_are_missing(tmp_path: Path, tar_format: str) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(picture(number))
        (tmp_path / f"{number}.txt").write_text(caption(number))
    os.truncate(tmp_path / "1.jpg", 10_000_000)
    names = [f"{number}.{extension}" for number in range(3) for extension in ("jpg", "txt")]
    options = ["--sparse", f"--format={tar_format}", "-C", str(tmp_path)]
    subprocess.run(["tar", "-cf", str(tmp_path / "0.tar"), *options, *names], check=True)
    index = index_shards([tmp_path / "0.tar"])
    assert [key for key, _, _ in read_all(index)] == ["0", "2"]
    assert index.left_out == Counter({Cause.NO_PICTURE: 1})


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def cut_with_zeros(path: Path, size: int) -> None:
    """As an interrupted copy to a preallocated file leaves it, here of 2 MB."""
    cut(path, size)
    os.truncate(path, 2_000_000)


def overwrite(path: Path, start: int, data: bytes) -> None:
    old = path.read_bytes()
    path.write_bytes(old[:start] + data + old[start + len(data) :])


def member(path: Path, number: int) -> tarfile.TarInfo:
    with tarfile.open(path) as tar:
        return tar.getmembers()[number]


def third_member(path: Path) -> tarfile.TarInfo:
    return member(path, 2)


DAMAGED = {
    "cut picture": (lambda path: cut(path, third_member(path).offset_data + 100), 1),
    "cut between samples": (lambda path: cut(path, third_member(path).offset), 1),
    "cut header": (lambda path: cut(path, third_member(path).offset + 100), 1),
    "cut before the caption": (lambda path: cut(path, third_member(path).offset_data + 2048), 1),
    "cut caption": (lambda path: cut(path, member(path, 3).offset_data + 5), 1),
    "cut last member": (lambda path: cut(path, member(path, 19).offset_data + 5), 9),
    "damaged header": (lambda path: overwrite(path, third_member(path).offset, b"\xaa" * 600), 1),
    "only zeros from a member on": (lambda path: cut_with_zeros(path, third_member(path).offset), 1),
    "zeroed header": (lambda path: overwrite(path, third_member(path).offset, bytes(512)), 1),
    "another tar behind it": (lambda path: path.write_bytes(path.read_bytes() * 2), 10),
    "empty file": (lambda path: cut(path, 0), 0),
    "no tar": (lambda path: path.write_bytes(b"<html>404</html>"), 0),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_can_be_read_of_a_damaged_tar_is_used(tmp_path: Path, name: str) -> None:
    damage, readable = DAMAGED[name]
    folder = write_shards(tmp_path, samples=30)
    damage(folder / "00001.tar")
    index = index_shards(sorted(folder.glob("*.tar")))
    assert index.ends.tolist() == [10, 10 + readable, 20 + readable]
    assert [key for key, _, _ in read_all(index)][10 : 10 + readable] == [f"{n:06d}" for n in range(10, 10 + readable)]
    assert index.left_out == Counter({Cause.DAMAGED_SHARD: 1})
    (folder / "00001_stats.json").write_text('{"count": 12, "successes": 10}')  # as img2dataset leaves it
    shutil.rmtree(folder / ".growclip")
    opened = open_shards(sorted(folder.glob("*.tar")))
    assert opened[1].left_out == Counter({Cause.DAMAGED_SHARD: max(1, 10 - readable)})
    assert opened[1].faults() == [Fault(str(folder / "00001.tar"), Cause.DAMAGED_SHARD)]


def test_what_statistics_promise_and_a_tar_lacks_is_lost(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", [*map(pair, range(4)), {"__key__": "lonely", "jpg": b"p"}])
    for successes, lost in ((5, 0), (7, 2)):
        (tmp_path / "0_stats.json").write_text(json.dumps({"successes": successes}))
        assert scan(str(shard)).left_out == Counter({Cause.NO_CAPTION: 1}) + Counter({Cause.DAMAGED_SHARD: lost})


def test_shards_without_a_usable_sample(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", [{"__key__": "a", "jpg": b"p"}, {"__key__": "b", "txt": b"c"}])
    with pytest.raises(InputError, match=r"no usable sample in .*0\.tar.*1 with no caption, 1 with no picture"):
        index_shards([shard])


def test_a_shard_that_changes_after_it_was_indexed(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, samples=10, per_shard=5)
    index = index_shards(sorted(folder.glob("*.tar")))
    (folder / "00000.tar").unlink()
    cut(folder / "00001.tar", int(index.places[7, 0]) * 512 + 600)
    reader = ShardReader(index)
    for position in (0, 7, 8):
        with pytest.raises(BrokenSample) as error:
            reader.read(position)
        assert error.value.cause is Cause.UNREADABLE_SHARD
    assert reader.read(6).picture == picture(6)


def test_a_handle_that_is_stale_is_opened_anew(tmp_path: Path) -> None:
    index = index_shards([write_shard(tmp_path / "0.tar", map(pair, range(3)))])
    reader = ShardReader(index)
    with (tmp_path / "stale").open("wb") as stale:  # reading it fails, as of a file that was replaced on a server
        reader._files[index.shards[0]] = stale
        assert [reader.read(position).key for position in range(3)] == [f"{n:06d}" for n in range(3)]


class Disk:
    """Stands in for `os.pread`, some of whose next calls fail, and for `time`: nobody waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.pauses, self.errors, self._read = 0.0, [], [], os.pread
        monkeypatch.setattr(os, "pread", self._pread)
        monkeypatch.setattr(samples, "time", self)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def monotonic(self) -> float:
        return self.now

    def pauses_of(self, reader: ShardReader, errors: list[int]) -> tuple[list[float], bool]:
        """The pauses while a sample is read, and whether it was read at last."""
        self.pauses, self.errors = [], errors
        try:
            return self.pauses, reader.read(1).key == "000001"
        except BrokenSample:
            return self.pauses, False

    def _pread(self, *arguments: int) -> bytes:
        if self.errors:
            error = self.errors.pop()
            raise OSError(error, os.strerror(error))
        return self._read(*arguments)


def test_a_read_that_fails_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once; if the server may only be away for some seconds, until it is back."""
    reader = ShardReader(index_shards([write_shard(tmp_path / "0.tar", map(pair, range(3)))]))
    disk = Disk(monkeypatch)
    assert disk.pauses_of(reader, [errno.EACCES]) == ([0], True)
    assert disk.pauses_of(reader, [errno.EACCES] * 2) == ([0], False)
    assert disk.pauses_of(reader, [errno.ESTALE, errno.EIO] * 2) == ([0, 1, 2, 4], True)
    assert disk.pauses_of(reader, [errno.ENOTCONN] * 7) == ([0, 1, 2, 4, 8, 16, 32], True)


def test_pauses_for_a_disk_that_does_not_come_back_do_not_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ShardReader(index_shards([write_shard(tmp_path / "0.tar", map(pair, range(3)))]))
    disk = Disk(monkeypatch)
    for _ in range(100):
        assert not disk.pauses_of(reader, [errno.EIO] * 8)[1]
    assert disk.now < 70
    disk.now += 600
    assert disk.pauses_of(reader, [errno.EIO] * 3) == ([0, 1, 2], True)


def index_on_a_rank(folder: str) -> tuple[list[str], dict[Cause, int]] | str:
    try:
        index = index_shards(sorted(Path(folder).glob("*.tar")))
    except InputError as error:
        return str(error)
    return [sample[0] for sample in read_all(index)], dict(index.left_out)


def test_ranks_share_the_scanning_and_fail_alike(tmp_path: Path, group: Groups) -> None:
    folder = write_shards(tmp_path, samples=50)
    write_shard(folder / "00005.tar", [{"__key__": "lonely", "jpg": b"p"}])
    shared = group(3).run(index_on_a_rank, str(folder))
    assert shared == [([f"{number:06d}" for number in range(50)], {Cause.NO_CAPTION: 1})] * 3
    assert index_on_a_rank(str(folder)) == shared[0]
    useless = tmp_path / "useless"
    write_shard(useless / "0.tar", [{"__key__": "lonely", "jpg": b"p"}])
    first, *others = group(3).run(index_on_a_rank, str(useless))
    assert "no usable sample in" in first
    assert others == [first] * 2
