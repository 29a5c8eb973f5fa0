from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from growclip_ds.data import index_file, shards, worker_processes
from growclip_ds.data.faults import Cause, Fault
from growclip_ds.data.index_file import build_index, is_beside, is_here, read_index
from growclip_ds.data.shards import index_shards, open_shards
from growclip_ds.errors import InputError
from tests.data.corpus import pair, write_shard, write_shards


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return write_shard(tmp_path / "00000.tar", [*map(pair, range(5)), {"__key__": "lonely", "txt": b"c"}])


def test_what_is_kept_is_what_was_found(tar: Path) -> None:
    assert read_index(str(tar)) is None
    built = build_index(str(tar))
    found = read_index(str(tar))
    assert found == built
    assert found.samples == 5
    assert found.file == tar.parent / ".growclip" / "00000.tar.idx"
    assert found.offset % 16 == 0
    assert found.places().tolist() == built.places().tolist()
    assert found.faults() == [Fault("lonely", Cause.NO_PICTURE)]
    assert [path.name for path in found.file.parent.iterdir()] == ["00000.tar.idx"]


def test_a_tar_is_scanned_once(tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(index_shards([tar])) == 5
    monkeypatch.setattr(shards, "build_index", lambda path: pytest.fail("scanned again"))
    assert len(index_shards([tar])) == 5


def changed_inside(tar: Path) -> None:
    """Another byte, but the same size and time."""
    status = tar.stat()
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    os.utime(tar, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = {
    "other samples": lambda tar: write_shard(tar, map(pair, range(10, 13))),
    "other time": lambda tar: os.utime(tar, ns=(1, 1)),
    "other content": changed_inside,
    "index cut off": lambda tar: os.truncate(tar.parent / ".growclip" / "00000.tar.idx", 100),
    "index of another format": lambda tar: (tar.parent / ".growclip" / "00000.tar.idx").write_bytes(b"x" * 500),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_scanned_again(tar: Path, change: str) -> None:
    build_index(str(tar))
    CHANGES[change](tar)
    assert read_index(str(tar)) is None
    (again,) = open_shards([tar])
    assert again.samples == (3 if change == "other samples" else 5)
    assert read_index(str(tar)) == again


@pytest.mark.parametrize("target", ["gone.tar", "00000.tar"], ids=["dangling", "loop"])
def test_the_index_of_a_tar_that_cannot_be_opened_is_not_used(tar: Path, target: str) -> None:
    build_index(str(tar))
    tar.unlink()
    tar.symlink_to(tar.parent / target)
    assert read_index(str(tar)) is None
    (found,) = open_shards([tar])
    assert (found.samples, found.faults()) == (0, [Fault(str(tar), Cause.DAMAGED_SHARD)])


def test_an_index_of_an_older_format_is_built_again(tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_index(str(tar))
    monkeypatch.setattr(index_file, "FORMAT", index_file.FORMAT + 1)
    assert read_index(str(tar)) is None


def test_where_the_folder_cannot_be_written_the_users_cache_is_used(
    tar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tar.parent / ".growclip").write_text("a file in the way")
    (built,) = open_shards([tar])
    assert built.file.parent == tmp_path / "cache" / "growclip" / "index"
    assert not is_beside(built)
    assert read_index(str(tar)) == built
    (tmp_path / "cache").rename(tmp_path / "gone")
    (tmp_path / "cache").write_text("in the way too")
    (kept,) = open_shards([tar])
    assert kept.file is None
    assert kept.faults() == [Fault("lonely", Cause.NO_PICTURE)]
    assert kept.places().tolist() == build_index(str(tar)).places().tolist()
    assert len(index_shards([tar])) == 5


def test_another_machine_may_have_another_tar_of_the_same_path(tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As copies on local disks are, of which one is older than the others."""
    theirs = build_index(str(tar))
    assert is_here(theirs)
    CHANGES["other content"](tar)
    build_index(str(tar))
    assert not is_here(theirs)
    other = write_shard(tar.with_name("00001.tar"), [pair(9)])
    monkeypatch.setattr(shards, "rank", lambda: 0)
    monkeypatch.setattr(shards, "world_size", lambda: 2)
    monkeypatch.setattr(shards, "all_gather_object", lambda mine: [mine, [theirs] if isinstance(mine, list) else mine])
    with pytest.raises(InputError, match=r"00000\.tar is not the same on all machines; copy it again"):
        open_shards([other, tar])


def test_many_tars_are_scanned_by_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_FEW", 2)
    monkeypatch.setattr(shards, "share_of_processors", lambda: 2)
    folder = write_shards(tmp_path, samples=12, per_shard=3)
    seen = []
    monkeypatch.setattr(
        worker_processes, "ProcessPoolExecutor", lambda *given: seen.append(given[0]) or ProcessPoolExecutor(*given)
    )
    index = index_shards(sorted(folder.glob("*.tar")), lambda done, tars: seen.append((done, tars)))
    assert index.ends.tolist() == [3, 6, 9, 12]
    assert seen == [2, (1, 4), (2, 4), (3, 4), (4, 4)]


def test_processes_that_scan_need_no_torch() -> None:
    line = "import sys, growclip_ds.data.index_file; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line], check=False).returncode == 0
