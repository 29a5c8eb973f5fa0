"""Copies of shards on a machine's own disk: made once, read in place of the shards, never taken for other data."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from growclip_ds.cli.program import main
from growclip_ds.data.index_file import FOLDER
from growclip_ds.data.samples import ShardReader
from growclip_ds.data.staging import copy_or_own, stage_shards, staged_path
from growclip_ds.data.subsets import Subset, find_shards, open_subsets
from growclip_ds.distributed import rank
from growclip_ds.errors import InputError
from tests.data.corpus import write_shards
from tests.group import Groups
from tests.pipeline_runs import SUBSET, write_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "with a space"
    folder.mkdir()
    return write_data(folder)


def opened(data: Path, staged: Path | None) -> tuple[str, ...]:
    subset = Subset("s1", str(data / "scenes/train/subset_1"))
    found = open_subsets([subset], staged=staged)
    assert found.subsets[0].samples == SUBSET
    assert found.subsets[0].shards == subset.shards  # what a run records stays as it is
    return found.train.shards


def test_copies_are_read_in_place_of_the_shards(data: Path, tmp_path: Path) -> None:
    (shard,) = own = opened(data, None)
    staged = tmp_path / "local disk"
    assert opened(data, staged) == own  # none there yet
    assert stage_shards(own, staged) == Path(shard).stat().st_size
    (copy,) = opened(data, staged)
    assert Path(copy) == staged_path(shard, staged)
    assert Path(copy).read_bytes() == Path(shard).read_bytes()
    index = Path(copy).parent / FOLDER / f"{Path(copy).name}.idx"
    assert index.read_bytes() == (Path(shard).parent / FOLDER / index.name).read_bytes()


def opened_on_a_rank(data: str, staged: list[str]) -> tuple[list[str], list[str]]:
    found = open_subsets([Subset("s", str(Path(data)))], staged=staged[rank()])
    reader = ShardReader(found.train)
    return list(found.train.shards), [reader.read(position).key for position in range(len(found.train))]


def test_a_machine_without_copies_reads_the_shards_themselves(tmp_path: Path, group: Groups) -> None:
    """Each rank has a folder of its own, as if it were another machine."""
    shards = find_shards(str(write_shards(tmp_path / "data", samples=25)))
    full, empty = str(tmp_path / "full"), str(tmp_path / "empty")
    stage_shards(shards, full)
    copies = [str(staged_path(shard, full)) for shard in shards]
    keys = [f"{n:06d}" for n in range(25)]
    for folders in ([full, empty], [empty, full]):
        expected = [(copies if folder == full else shards, keys) for folder in folders]
        assert group(2).run(opened_on_a_rank, str(tmp_path / "data"), folders) == expected


def test_a_copy_of_a_shard_that_has_changed_since_is_not_read(data: Path, tmp_path: Path) -> None:
    (shard,) = own = opened(data, None)
    stage_shards(own, tmp_path / "disk")
    os.utime(shard)  # as if written anew
    assert opened(data, tmp_path / "disk") == own
    Path(shard).unlink()  # a machine that has only copies
    assert copy_or_own(shard, tmp_path / "disk") == str(staged_path(shard, tmp_path / "disk"))


def test_what_killed_stagings_have_left_is_removed(tmp_path: Path) -> None:
    shards = find_shards(str(write_shards(tmp_path / "data", samples=20)))
    folder = staged_path(shards[0], tmp_path / "disk").parent
    (folder / FOLDER).mkdir(parents=True)
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead = [folder / f".00001.tar.{gone.pid}.partial", folder / FOLDER / f".00001.tar.idx.{gone.pid}.partial"]
    alive = folder / f".00001.tar.{os.getpid()}.partial"  # as if another thread wrote it
    new = folder / f".00000.tar.{gone.pid}.partial"  # seems dead, but is written: in another container
    for partial in (*dead, alive, new):
        partial.write_bytes(b"half of it")
        if partial != new:
            os.utime(partial, (0, 0))
    stage_shards(shards[:1], tmp_path / "disk")
    assert [partial.exists() for partial in (*dead, alive, new)] == [False, False, True, True]


def test_what_is_there_stays_and_what_has_changed_is_copied_anew(data: Path, tmp_path: Path) -> None:
    shards = find_shards(str(data / "scenes/train/subset_1"))
    stage_shards(shards, tmp_path / "disk")
    copy = staged_path(shards[0], tmp_path / "disk")
    before = copy.stat().st_ino
    assert stage_shards(shards, tmp_path / "disk") == 0
    assert copy.stat().st_ino == before
    os.utime(shards[0])
    assert stage_shards(shards, tmp_path / "disk") > 0
    assert copy.stat().st_mtime_ns == Path(shards[0]).stat().st_mtime_ns
    assert not list((tmp_path / "disk").rglob("*.partial"))


def test_several_shards_are_copied_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, copy = threading.Barrier(2, timeout=20), shutil.copy2
    monkeypatch.setattr(shutil, "copy2", lambda *of: (both.wait(), copy(*of)))
    shards, told = find_shards(str(write_shards(tmp_path / "data", samples=20))), []
    stage_shards(shards, tmp_path / "disk", lambda *done: told.append(done))
    assert told == [(1, 2), (2, 2)]
    for shard in shards:
        assert staged_path(shard, tmp_path / "disk").read_bytes() == Path(shard).read_bytes()


def test_a_disk_that_is_too_small_is_said_before_copying(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 0

    monkeypatch.setattr("growclip_ds.data.staging.shutil.disk_usage", lambda _: Usage)
    shards = find_shards(str(data / "scenes/train/subset_1"))
    with pytest.raises(InputError, match=r"0\.0 GB of shards are to be copied .* name a larger disk"):
        stage_shards(shards, tmp_path / "disk")
    assert not staged_path(shards[0], tmp_path / "disk").exists()
    with pytest.raises(InputError, match="cannot be copied to /sys/growclip"):
        stage_shards(shards, "/sys/growclip")


def test_the_command_copies_what_a_growth_step_needs(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "stage", "--to", str(tmp_path / "disk"), "--config", str(data / "config.yaml")]
    assert main([*command, "--growth-step", "1"]) == 0
    assert "1 shards, " in capsys.readouterr().out
    assert main([*command, "data.workers=0"]) == 0
    assert "2 shards, " in capsys.readouterr().out
    assert len(list((tmp_path / "disk").rglob("*.tar"))) == 2
    for step in ("-1", "0", "3"):
        assert main([*command, "--growth-step", step]) == 2
        assert f"--growth-step {step}: the run has growth steps 1 to 2" in capsys.readouterr().err
