"""Evaluation sets: what is read from them, and every way in which one can be unusable."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from growclip_ds.errors import InputError
from growclip_ds.evaluation import ClassificationSet, RetrievalSet, classify, load_evaluation_set, retrieve
from growclip_ds.evaluation.batches import batches
from tests.evaluation import sets
from tests.group import Groups

REAL_SETS = Path(__file__).parents[3] / "shared" / "data" / "eval"


def make_set(folder: Path) -> Path:
    return sets.write_classification_set(folder, [2, 0, 6], [2, 1])


def make_retrieval_set(folder: Path) -> Path:
    samples = [(sets.encoded(sets.picture(i)), text) for i, text in enumerate(["one\n eins \n\n", "two"])]
    return sets.write_set(folder, "retrieval", samples, [2])


def test_reads_a_classification_set(tmp_path: Path) -> None:
    dataset = load_evaluation_set(make_set(tmp_path / "things"))
    assert isinstance(dataset, ClassificationSet)
    assert (dataset.name, dataset.samples, len(dataset.shards)) == ("things", 3, 2)
    assert dataset.class_names == tuple(sets.CLASS_NAMES)
    assert dataset.templates == tuple(sets.TEMPLATES)
    (first, labels, _), (second, more_labels, _) = batches(dataset, sets.SIZE, 2)
    assert labels + more_labels == [2, 0, 6]
    pixels = torch.cat([first, second])
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels.permute(0, 2, 3, 1), torch.stack([torch.from_numpy(sets.picture(i)) for i in range(3)]))


@pytest.mark.parametrize("kind", ["retrieval", "Retrieval\n"])
def test_reads_a_retrieval_set(tmp_path: Path, kind: str) -> None:
    folder = make_retrieval_set(tmp_path / "pairs")
    (folder / "dataset_type.txt").write_text(kind)
    dataset = load_evaluation_set(folder)
    assert isinstance(dataset, RetrievalSet)
    [(pixels, captions, _)] = batches(dataset, sets.SIZE, 8)
    assert captions == [["one", "eins"], ["two"]]
    assert pixels.shape == (2, 3, sets.SIZE, sets.SIZE)


def test_takes_every_picture_format_and_skips_what_it_does_not_know(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "things")
    members = [("__meta__", b"?"), ("notes.json", b"{}")]
    for number, (extension, image_format) in enumerate(
        [("jpg", "JPEG"), ("JPEG", "JPEG"), ("png", "PNG"), ("webp", "WEBP")]
    ):
        image = sets.encoded(sets.picture(number), image_format)
        members += [(f"a/{number}.{extension}", image), (f"a/{number}.cls", b"1\n"), (f"a/{number}.json", b"{}")]
    sets.write_tar(folder / "test" / "0.tar", members)
    dataset = load_evaluation_set(folder)
    assert dataset.samples == 5
    assert [label for batch in batches(dataset, sets.SIZE, 3) for label in batch.annotations] == [1, 1, 1, 1, 6]


def test_a_set_that_does_not_say_its_type_is_for_classification(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "things")
    (folder / "dataset_type.txt").unlink()
    assert isinstance(load_evaluation_set(folder), ClassificationSet)


def share_on_rank(folder: Path) -> list[list[int]]:
    return [batch.annotations for batch in batches(load_evaluation_set(folder), sets.SIZE, 2)]


def test_ranks_get_as_many_batches_each(tmp_path: Path, group: Groups) -> None:
    folder = sets.write_classification_set(tmp_path / "things", [0, 1, 2, 3, 4, 5, 6], [7])
    assert group(3).run(share_on_rank, folder) == [[[0, 1], []], [[2, 3], []], [[4, 5], [6]]]


def test_unreadable_pictures_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = [sets.encoded(sets.picture(0)), sets.encoded(sets.picture(1))[:100], b""]
    folder = sets.write_set(tmp_path / "pairs", "retrieval", [(image, "text") for image in images], [3])
    with caplog.at_level(logging.WARNING):
        result = retrieve(sets.KnownEncoder(), load_evaluation_set(folder), sets.tokenize, sets.SIZE, 2)[0]
    assert (result.pictures, result.captions, result.unreadable) == (1, 1, 2)
    assert [record.message for record in caplog.records if "0.tar: s0001.png skipped" in record.message]

    folder = make_set(tmp_path / "things")
    sets.write_tar(folder / "test" / "1.tar", [("x.png", b"no picture"), ("x.cls", b"3")])
    result = classify(sets.KnownEncoder(), load_evaluation_set(folder), sets.tokenize, sets.SIZE, 2)[0]
    assert (result.samples, result.unreadable) == (2, 1)


@pytest.mark.parametrize("evaluate", [classify, retrieve])
def test_a_set_of_unreadable_pictures_is_an_error(tmp_path: Path, evaluate: Callable) -> None:
    folder = make_set(tmp_path / "it") if evaluate is classify else make_retrieval_set(tmp_path / "it")
    annotation = ("x.cls", b"3") if evaluate is classify else ("x.txt", b"text")
    for shard in (folder / "test").glob("*.tar"):
        sets.write_tar(shard, [("x.png", b"no picture"), annotation])
    with pytest.raises(InputError, match=r"evaluation set it: its first image, x\.png in .*0\.tar, cannot be decoded"):
        load_evaluation_set(folder)
    # Nor is one whose pictures are spoilt after it was loaded.
    dataset = load_evaluation_set((make_set if evaluate is classify else make_retrieval_set)(tmp_path / "later" / "it"))
    for shard, count in zip(dataset.shards, dataset.counts, strict=True):
        samples = [(f"{n}.png", b"no picture") for n in range(count)] + [
            (f"{n}.{annotation[0][2:]}", annotation[1]) for n in range(count)
        ]
        sets.write_tar(Path(shard), sorted(samples))
    with pytest.raises(InputError, match=f"evaluation set it: none of its {dataset.samples} images"):
        evaluate(sets.KnownEncoder(), dataset, sets.tokenize, sets.SIZE, 2)


def replace(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def make_folder(name: str) -> Callable[[Path], object]:
    """What reading fails on for everyone, where a file without permissions would not stop the superuser."""
    return lambda folder: ((folder / name).unlink(), (folder / name).mkdir())


def put(*members: tuple[str, bytes]) -> Callable[[Path], object]:
    return lambda folder: sets.write_tar(folder / "test" / "1.tar", list(members))


def truncate(folder: Path) -> None:
    shard = folder / "test" / "0.tar"
    shard.write_bytes(shard.read_bytes()[:2100])


PICTURE = ("s2.png", sets.encoded(sets.picture(2)))
BAD_SETS = {
    "class names missing": (remove("classnames.txt"), r"classnames\.txt: no such file.*one class name per line"),
    "class names empty": (replace("classnames.txt", " \n"), r"classnames\.txt: the file is empty"),
    "class name blank": (replace("classnames.txt", "a\n\nb"), r"classnames\.txt: line 2 is blank"),
    "templates missing": (remove("zeroshot_classification_templates.txt"), r"templates\.txt: no such file.*\{c\}"),
    "templates empty": (replace("zeroshot_classification_templates.txt", ""), r"templates\.txt: the file is empty"),
    "template without class": (
        replace("zeroshot_classification_templates.txt", "a {c}\na {}"),
        r"templates\.txt: the template 'a \{\}' has no \{c\}; put \{c\} where",
    ),
    "type unknown": (replace("dataset_type.txt", "multilabel"), r"dataset_type\.txt: 'multilabel' is not a known type"),
    "number of shards missing": (remove("test/nshards.txt"), r"nshards\.txt: no such file; it must state"),
    "number of shards wrong": (replace("test/nshards.txt", "two"), r"nshards\.txt: 'two' is not a number"),
    "shard missing": (replace("test/nshards.txt", "3"), r"2\.tar: no such file, though .*nshards\.txt says 3"),
    "shard no tar file": (replace("test/1.tar", "junk"), r"1\.tar: not a readable tar file .*copy or make it again"),
    "shard truncated": (truncate, r"0\.tar: not a readable tar file .*copy or make it again"),
    "member twice": (put(PICTURE, PICTURE, ("s2.cls", b"1")), r"1\.tar: not a readable tar file .*duplicate"),
    "label too large": (put(PICTURE, ("s2.cls", b"7")), r"1\.tar: sample s2: its class is 7, .* names 0 to 6"),
    "label negative": (put(PICTURE, ("s2.cls", b"-1")), r"1\.tar: sample s2: its class '-1' is not a number"),
    "label no number": (put(PICTURE, ("s2.cls", b"cat")), r"1\.tar: sample s2: its class 'cat' is not a number"),
    "label missing": (put(PICTURE), r"1\.tar: sample s2: no class; every sample needs a member s2\.cls"),
    "picture missing": (put(("s2.cls", b"1")), r"1\.tar: sample s2: no image; .*jpg, jpeg, png, webp"),
}


TEXT_FILES = (
    "classnames.txt",
    "zeroshot_classification_templates.txt",
    "dataset_type.txt",
    "test/nshards.txt",
)
for _name in TEXT_FILES:
    BAD_SETS[f"{_name} in Latin-1"] = (
        lambda folder, name=_name: (folder / name).write_bytes("café {c}".encode("latin-1")),
        rf"{_name}: the file is not UTF-8; save it as UTF-8",
    )
    BAD_SETS[f"{_name} unreadable"] = (make_folder(_name), rf"{_name}: cannot be read \(Is a directory\)")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    """Editors on Windows put one before UTF-8; it would be in every prompt of the first class."""
    folder = make_set(tmp_path / "things")
    expected = load_evaluation_set(folder)
    for name in TEXT_FILES:
        (folder / name).write_text((folder / name).read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert load_evaluation_set(folder) == expected


@pytest.mark.parametrize(("spoil", "message"), BAD_SETS.values(), ids=BAD_SETS)
def test_an_unusable_set_is_one_clear_error(tmp_path: Path, spoil: Callable, message: str) -> None:
    folder = make_set(tmp_path / "things")
    load_evaluation_set(folder)
    spoil(folder)
    with pytest.raises(InputError, match=message):
        load_evaluation_set(folder)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([PICTURE], r"0\.tar: sample s2: no captions; every sample needs a member s2\.txt"),
        ([PICTURE, ("s2.txt", b" \n\n")], r"0\.tar: sample s2: it has no caption"),
        ([], r"evaluation set .*pairs: no samples in 1 shards"),
    ],
)
def test_captions_missing(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    folder = make_retrieval_set(tmp_path / "pairs")
    sets.write_tar(folder / "test" / "0.tar", members)
    with pytest.raises(InputError, match=message):
        load_evaluation_set(folder)


def test_folder_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"evaluation set .*nowhere: no such folder"):
        load_evaluation_set(tmp_path / "nowhere")


@pytest.mark.skipif(not REAL_SETS.exists(), reason="needs ../shared/data/eval")
def test_reads_the_real_sets() -> None:
    groceries = load_evaluation_set(REAL_SETS / "grocery_zeroshot")
    assert isinstance(groceries, ClassificationSet)
    assert (groceries.samples, len(groceries.class_names), len(groceries.templates)) == (2485, 81, 4)
    pixels, labels, _ = next(batches(groceries, 64, 16))
    assert pixels.shape == (16, 3, 64, 64)
    assert len(labels) == 16
    assert pixels.float().std() > 10

    anthropology = load_evaluation_set(REAL_SETS / "openstax_anthropology_retrieval")
    assert isinstance(anthropology, RetrievalSet)
    assert anthropology.samples == 327
    pixels, captions, _ = next(batches(anthropology, 64, 16))
    assert pixels.shape == (16, 3, 64, 64)
    assert all(1 <= len(texts) <= 2 for texts in captions)
