from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from growclip_ds.cli.program import main
from growclip_ds.data.check import BrokenPlace, DataReport, bins, check_data, summary
from growclip_ds.data.faults import Cause
from growclip_ds.data.shards import open_shards
from growclip_ds.data.subsets import Subset, write_subsets
from tests.data.corpus import caption, pair, picture, small_tokenizer, write_faulty, write_shard, write_shards


def test_everything_is_counted(tmp_path: Path) -> None:
    expected = write_faulty(tmp_path)
    paths = sorted(tmp_path.glob("*.tar"))
    report = check_data(open_shards(paths))
    assert report.samples == 60
    assert report.broken == expected
    assert report.broken_share == expected.total() / 60
    usable = [*range(7, 30), *range(40, 60)]
    assert report.caption_lengths == Counter(len(caption(n).split()) for n in usable)
    assert (report.short_sides, report.long_sides) == ({14: 43}, {20: 43})
    assert report.formats == {"JPEG": 43}
    assert (report.shards, report.size) == (3, sum(path.stat().st_size for path in paths))
    listed = [(place.key, Path(place.shard).name) for place in report.broken_samples]
    assert listed == [*((f"{n:06d}", "00000.tar") for n in range(7)), (str(paths[1]), "00001.tar")]


def test_several_processes_and_streamed_shards_find_the_same(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, 30)
    paths = sorted(folder.glob("*.tar"))
    tokenizer = small_tokenizer()
    here = check_data(open_shards(paths), tokenizer=tokenizer)
    for workers in (0, 2):
        assert check_data(open_shards(paths), tokenizer=tokenizer, workers=workers).to_json() == here.to_json()
    streamed = check_data([], [(f"pipe:cat {path}", 10) for path in paths], tokenizer)
    assert streamed.to_json() | {"bytes": here.size} == here.to_json()
    assert here.unit == "tokens"
    assert here.caption_lengths.total() == 30
    assert min(here.caption_lengths) > 2  # start and end of text, and something between


def with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    return jpeg[:2] + bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content + jpeg[2:]


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(
    ("marker", "content"),
    [
        (0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\xff"),  # a directory that is cut off
        (0xE2, b"MPF\0MM\0*\0\0\0\x08\0\xff"),
        (0xE2, b"MPF\0MM\0*\0\0\0\x08\0\0\0\0\0\0"),  # several pictures, without their number
    ],
    ids=["EXIF", "MPO", "MPO without number"],
)
def test_what_is_damaged_beside_the_pixels_is_passed_over(tmp_path: Path, marker: int, content: bytes) -> None:
    """As in training, which does not look there."""
    odd = with_segment(picture(0), marker, content)
    report = check_data(open_shards([write_shard(tmp_path / "0.tar", [pair(0) | {"jpg": odd}])]))
    assert (report.samples, report.broken, report.formats) == (1, Counter(), {"JPEG": 1})


def test_a_shard_that_is_gone_is_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "0.tar").symlink_to(tmp_path / "gone.tar")
    report = check_data(open_shards([tmp_path / "0.tar"]))
    assert (report.size, report.samples, report.broken) == (0, 1, Counter({Cause.DAMAGED_SHARD: 1}))


def test_reports_of_many_shards_are_added_in_time_linear_in_them() -> None:
    whole, part = DataReport("words"), DataReport("words", shards=1, samples=1000)
    part.broken_samples = [BrokenPlace("key", Cause.BROKEN_PICTURE, "0.tar")] * 100
    start = time.process_time()
    for _ in range(10_000):
        whole.add(part)
    assert time.process_time() - start < 3  # copying what there was each time took 20 or more
    assert (whole.shards, whole.samples, len(whole.broken_samples)) == (10_000, 10_000_000, 1_000_000)


def test_numbers_in_short() -> None:
    counts = Counter({1: 50, 3: 44, 10: 5, 40: 1})
    assert summary(counts) == {"min": 1, "mean": 2.72, "median": 1, "p95": 10, "max": 40}
    assert bins(counts) == [
        (s, s + 3, n) for s, n in zip(range(1, 41, 4), [94, 0, 5, 0, 0, 0, 0, 0, 0, 1], strict=True)
    ]
    assert summary(Counter()) == {}
    assert bins(Counter()) == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, faulty, listing = write_shards(tmp_path / "good", 30), tmp_path / "faulty", tmp_path / "list.yaml"
    faulty.mkdir()
    write_faulty(faulty)
    assert main(["data", "add", str(listing), "good", str(folder)]) == 0
    assert "   1  good  30  30" in capsys.readouterr().out
    assert main(["data", "check", str(listing), "--workers", "1"]) == 0
    assert "30, of them usable 30" in capsys.readouterr().out
    command = ["data", "check", str(folder), str(faulty), "--workers", "1"]
    assert main([*command, "--broken", str(tmp_path / "broken.jsonl")]) == 1
    shown = capsys.readouterr().out
    assert "10 with shard cut off or damaged" in shown
    assert "000002: picture has too many pixels" in shown
    broken = [json.loads(line) for line in (tmp_path / "broken.jsonl").read_text().splitlines()]
    assert {"key": "000004", "cause": "caption is not UTF-8", "shard": str(faulty / "00000.tar")} in broken
    assert main([*command, "--json", "--max-broken-share", "0.2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["usable"], len(found["broken_samples"])) == (90, 73, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--broken", "."], ". is a folder; name a file in it"),
        (["--broken", "/proc/nowhere/broken.jsonl"], "/proc/nowhere/broken.jsonl cannot be written"),
        (["--max-broken-share", "nan"], "--max-broken-share must be a number from 0 to 1, not nan"),
    ],
)
def test_wrong_requests_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path, 1)
    assert main(["data", "check", str(tmp_path), "--workers", "1", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"growclip: error: {message}")


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ({"jpg": b"p", "txt": b"c"}, "there are 1 with picture cannot be decoded"),
        ({"jpg": b"p"}, "there are 1 with no caption"),
        ({"cls": b"1"}, "there are none with either"),
    ],
)
def test_data_without_a_usable_sample_fails_the_check(
    sample: dict[str, bytes], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "0.tar", [{"__key__": "a"} | sample])
    assert main(["data", "check", str(tmp_path), "--max-broken-share", "1"]) == 1
    assert capsys.readouterr().err.endswith(f"one after the other in the tar; {said}\n")


def test_streamed_shards_of_a_list_are_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, log, listing = write_shards(tmp_path / "data", 25), tmp_path / "streamed", tmp_path / "list.yaml"
    shards = f"pipe:echo x >> {log}; cat {folder}/{{00000..00002}}.tar"
    for counts, streams in (((10, 10, 5), 3), ((10, 15), 6)):
        log.unlink(missing_ok=True)
        write_subsets([Subset("far", shards, 25, counts)], listing)
        assert main(["data", "check", str(listing), "--workers", "1"]) == 0
        assert "25, of them usable 25" in capsys.readouterr().out
        assert len(log.read_text().split()) == streams
