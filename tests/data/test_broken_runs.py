"""Runs on broken data: what is left out is counted and told, and too much of it stops all ranks."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from growclip_ds.errors import InputError
from tests.group import Groups
from tests.pipeline_runs import grow, write_data


def break_captions(data: Path, first: int) -> int:
    """Makes the captions of the first subset from a number on empty, in place; returns how many."""
    (shard,) = (data / "scenes/train/subset_1").glob("*.tar")
    with tarfile.open(shard) as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".txt")][first:]
    content = bytearray(shard.read_bytes())
    for member in members:
        content[member.offset_data : member.offset_data + member.size] = b" " * member.size
    shard.write_bytes(content)
    return len(members)


def refused(data: Path, run: Path) -> str:
    try:
        grow(data, run, step=1)
    except InputError as error:
        return str(error)
    return ""


def test_broken_samples_are_counted_listed_and_limited(tmp_path: Path, group: Groups) -> None:
    """Those that the index leaves out, and those that show when they are read."""
    data = write_data(tmp_path)
    broken = break_captions(data, first=44)
    captions, other = group(2).run(refused, data, tmp_path / "refused")
    assert captions == other
    assert "with caption is empty" in captions
    assert "of data.max_broken_share" in captions

    (shard,) = (data / "scenes/train/subset_1").glob("*.tar")
    with tarfile.open(shard) as tar:
        cut = tar.getmembers()[-4].offset  # a part of the last sample but one
    shard.write_bytes(shard.read_bytes()[:cut])
    lost, other = group(2).run(refused, data, tmp_path / "refused too")
    assert lost == other
    assert "2 of 48 samples cannot be used" in lost  # as the statistics beside the shard say
    assert "2 with shard cut off or damaged" in lost
    assert f"such as {shard}" in lost

    run = tmp_path / "run"
    group(2).run(grow, data, run, 2, 1, ("data.max_broken_share=0.2",))
    (entry,) = [json.loads(line) for line in (run / "faults/index.jsonl").read_text().splitlines()]
    assert entry == {"key": str(shard), "cause": "shard cut off or damaged"}
    left = broken - 2  # the two that are lost were among them
    record = json.loads((run / "step_1/train/phase.json").read_text())
    assert record["broken_samples"] == {"caption is empty": 2 * left}
    listed = [json.loads(line) for file in run.glob("faults/rank_*.jsonl") for line in file.read_text().splitlines()]
    assert len({entry["key"] for entry in listed}) == left
    assert {(entry["cause"], entry["step"], entry["phase"]) for entry in listed} == {("caption is empty", 1, "train")}
