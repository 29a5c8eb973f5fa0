"""Copies of shards on a machine's own disk: made once, read in place of the shards, never taken for other data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from growclip_ds.cli.program import main
from growclip_ds.data.index_file import FOLDER
from growclip_ds.data.staging import stage_shards, staged_path
from growclip_ds.data.subsets import Subset, find_shards, open_subsets
from growclip_ds.errors import InputError
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
