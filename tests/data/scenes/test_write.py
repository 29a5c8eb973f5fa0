"""The folder on disk: layouts, the same bytes for the same arguments, nothing in halves, other data left alone."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from growclip_ds.data.scenes import write
from growclip_ds.data.scenes.sets import CLASSES, RETRIEVAL, TEMPLATES
from growclip_ds.data.scenes.write import write_scenes
from growclip_ds.errors import InputError

ARGUMENTS = {"samples": 25, "subsets": 2, "seed": 3, "size": 32, "shard_size": 8, "eval_samples": 61}
LARGEST_SHARDS = {"shard_size": 10_000}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "out"
    assert write_scenes(out, **ARGUMENTS) == 4 + 3 * 8
    return out


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def samples(*tars: Path) -> list[dict[str, bytes]]:
    return list(webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False, empty_check=False))


def captions(out: Path, subset: int) -> list[bytes]:
    return [sample["txt"] for sample in samples(*sorted((out / "train" / f"subset_{subset}").glob("*.tar")))]


def test_training_shards_are_in_img2datasets_layout(scenes: Path) -> None:
    names = {path.name for path in (scenes / "train" / "subset_1").iterdir()}
    assert names == {"10000.tar", "10000_stats.json", "10001.tar", "10001_stats.json"}
    counts = {}
    for tar in (scenes / "train").glob("*/*.tar"):
        read = samples(tar)
        stats = json.loads(tar.with_name(f"{tar.stem}_stats.json").read_text())
        assert stats == {"count": len(read), "successes": len(read)}
        assert [sample["__key__"] for sample in read] == [f"{tar.stem}{place:04d}" for place in range(len(read))]
        assert all({"jpg", "txt", "json"} < set(sample) for sample in read)
        counts[tar.stem] = len(read)
    assert counts == {"10000": 8, "10001": 5, "20000": 8, "20001": 4}


@pytest.mark.parametrize("dataset", CLASSES)
def test_classification_sets_are_in_clip_benchmarks_layout(scenes: Path, dataset: str) -> None:
    folder = scenes / "eval" / dataset
    shards = int((folder / "test" / "nshards.txt").read_text())
    read = samples(*(folder / "test" / f"{shard}.tar" for shard in range(shards)))
    names = (folder / "classnames.txt").read_text().splitlines()
    assert (folder / "dataset_type.txt").read_text() == "classification\n"
    assert names == [str(combination) for combination in CLASSES[dataset]]
    assert (folder / "zeroshot_classification_templates.txt").read_text().splitlines() == list(TEMPLATES)
    assert [int(sample["cls"]) for sample in read] == [index % len(names) for index in range(61)]
    assert all(Image.open(io.BytesIO(sample["jpg"])).size == (32, 32) for sample in read)


def test_the_retrieval_set_is_in_clip_benchmarks_layout(scenes: Path) -> None:
    folder = scenes / "eval" / RETRIEVAL
    shards = int((folder / "test" / "nshards.txt").read_text())
    read = samples(*(folder / "test" / f"{shard}.tar" for shard in range(shards)))
    assert (folder / "dataset_type.txt").read_text() == "retrieval\n"
    assert not (folder / "classnames.txt").exists()
    assert len(read) == 61
    assert all(len(sample["txt"].decode().split("\n")) == 3 for sample in read)


def test_the_same_arguments_give_the_same_bytes_by_any_number_of_workers(scenes: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "again", **ARGUMENTS, workers=2)
    assert digests(tmp_path / "again") == digests(scenes)


def test_a_sample_does_not_depend_on_how_many_are_drawn(scenes: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "more", **ARGUMENTS | {"samples": 60, "subsets": 3, "shard_size": 20})
    for subset in (1, 2):
        before = captions(scenes, subset)
        assert captions(tmp_path / "more", subset)[: len(before)] == before


def test_writing_again_writes_nothing(scenes: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in scenes.rglob("*")}
    assert write_scenes(scenes, **ARGUMENTS) == 0
    assert {path: path.stat().st_mtime_ns for path in scenes.rglob("*")} == before


def test_what_was_lost_is_written_again(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_scenes(out, **ARGUMENTS)
    (out / "train" / "subset_2" / "20001.tar").unlink()
    (out / "train" / "subset_1" / "10000_stats.json").unlink()
    (out / "eval" / RETRIEVAL / "test" / "nshards.txt").unlink()
    assert write_scenes(out, **ARGUMENTS) == 2
    assert digests(out) == digests(scenes)


def test_an_interrupted_run_leaves_no_half_file_and_is_finished_by_the_next(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = 0

    def interrupted(*arguments: object) -> dict[str, bytes]:
        nonlocal drawn
        drawn += 1
        if drawn > 11:  # in the middle of the second shard
            raise KeyboardInterrupt
        return training_sample(*arguments)

    training_sample = write.training_sample
    monkeypatch.setattr(write, "training_sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "out", **ARGUMENTS)
    monkeypatch.undo()

    tars = list((tmp_path / "out").rglob("*.tar"))
    assert [tar.name for tar in tars] == ["10000.tar"]
    with tarfile.open(tars[0]) as tar:
        assert len(tar.getnames()) == 3 * 8
    assert not (tmp_path / "out" / "train" / "subset_1" / "10001_stats.json").exists()
    write_scenes(tmp_path / "out", **ARGUMENTS)
    assert digests(tmp_path / "out") == digests(scenes)


def test_the_manifest_says_what_is_there(scenes: Path) -> None:
    manifest = json.loads((scenes / "scenes.json").read_text())
    assert manifest["arguments"].items() > ARGUMENTS.items()
    assert manifest["train"] == {"subset_1": 13, "subset_2": 12}
    assert manifest["eval"] == dict.fromkeys(("scenes_objects", "scenes_selection", "scenes_retrieval"), 61)


def test_progress_counts_shards(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_scenes(tmp_path / "out", **ARGUMENTS | LARGEST_SHARDS, progress=lambda *call: calls.append(call))
    assert calls == [(done, 5) for done in range(1, 6)]


def test_other_scenes_in_the_folder_are_left_alone(scenes: Path) -> None:
    before = digests(scenes)
    with pytest.raises(InputError, match=r"seed 3, now 4.*another folder"):
        write_scenes(scenes, **ARGUMENTS | {"seed": 4})
    assert digests(scenes) == before


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not an empty folder"):
        write_scenes(tmp_path, **ARGUMENTS)
    with pytest.raises(InputError, match="not an empty folder"):
        write_scenes(tmp_path / "thesis.txt", **ARGUMENTS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="scenes cannot be written to"):
        write_scenes(tmp_path / "file" / "scenes", **ARGUMENTS)


def test_an_unreadable_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "scenes.json").write_text("{")
    with pytest.raises(InputError, match=r"scenes\.json cannot be read"):
        write_scenes(tmp_path, **ARGUMENTS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"subsets": 0}, "--subsets must be at least 1"),
        ({"samples": 1}, "--samples must be at least 2, one for each subset"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"size": 8}, "--size must be between 32 and 4096 pixels"),
        ({"shard_size": 0}, "--shard-size must be between 1 and 10000"),
        ({"eval_samples": 59}, "--eval-samples must be at least 60, one for each class"),
        ({"samples": 30_000, "subsets": 1, "shard_size": 2}, "more than 10000 shards"),
    ],
)
def test_arguments_out_of_range_are_named(wrong: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        write_scenes(tmp_path / "out", **ARGUMENTS | wrong)
    assert not (tmp_path / "out").exists()
