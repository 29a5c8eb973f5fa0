"""Lists of evaluation sets: the committed ones, where their sets are, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import pytest

from growclip_ds.errors import InputError
from growclip_ds.evaluation.lists import read_list
from growclip_ds.evaluation.source import Source

LISTS = Path(__file__).parents[2] / "configs" / "eval"
HUB = "https://huggingface.co/datasets/clip-benchmark"
NINE = ["Caltech101", "CIFAR10", "CIFAR100", "DTD", "Flowers102", "Food101", "OxfordPets", "SUN397", "ImageNet"]


def test_the_papers_sets() -> None:
    listed = read_list(LISTS / "paper.yaml")
    assert [one.name for one in listed.sets] == [*NINE, "Flickr30K", "MSCOCO"]
    addresses = [Source(listed.location(one)).address(f"{one.split}/0.tar") for one in listed.sets]
    assert addresses[0] == f"{HUB}/wds_vtab-caltech101/resolve/main/test/0.tar"
    assert len(set(addresses)) == 11


def test_every_committed_list_can_be_read() -> None:
    for file in LISTS.glob("*.yaml"):
        assert read_list(file).sets


@pytest.mark.parametrize(
    ("root", "location"),
    [
        ("sets", "sets/wds_food101"),
        ("https://host/sets/", "https://host/sets/wds_food101"),
        ("pipe:aws s3 cp s3://sets/{} -", "pipe:aws s3 cp s3://sets/wds_food101/{} -"),
    ],
)
def test_another_root_and_some_of_the_sets(root: str, location: str) -> None:
    listed = read_list(LISTS / "paper.yaml", root, ["Food101"])
    assert [listed.location(one) for one in listed.sets] == [location]


def test_a_location_of_its_own_is_not_under_the_root(tmp_path: Path) -> None:
    file = tmp_path / "list.yaml"
    file.write_text("root: sets\nsets: [{name: a, path: /else/a}, {name: b, path: 'https://host/b', split: val}]")
    listed = read_list(file)
    assert [(listed.location(one), one.split) for one in listed.sets] == [
        ("/else/a", "test"),
        ("https://host/b", "val"),
    ]


def test_a_set_may_go_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "list.yaml"
    file.write_text("root: sets\nsets: [a, {path: b, split: val}]")
    listed = read_list(file)
    assert [(one.name, listed.location(one)) for one in listed.sets] == [("a", "sets/a"), ("b-val", "sets/b")]


BAD_LISTS = {
    "sets: []": "sets is []; expected a list with at least one set, each with a name and a path",
    "root: x": "sets is missing; expected a list with at least one set",
    "sets: [{name: a}]": "sets.0.path is missing; expected a non-empty string",
    "sets: [{name: a, path: x, spilt: val}]": "there is no key sets.0.spilt; did you mean sets.0.split?",
    "sets: [{name: a, path: 3}]": "sets.0.path is 3; expected a non-empty string",
    "sets: ['']": "sets.0.path is ''; expected a non-empty string",
    "sets: [{name: a, path: x}, {name: a, path: y}]": "sets: two sets are called 'a'; give each a name of its own",
    "root: 5\nsets: [{name: a, path: x}]": "root is 5; expected a non-empty string",
    "[a, b]": "must hold `root: …` and `sets: …`, but holds ['a', 'b']",
}


@pytest.mark.parametrize(("text", "message"), BAD_LISTS.items(), ids=BAD_LISTS)
def test_what_is_wrong_with_a_list_is_said(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "list.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as raised:
        read_list(file)
    assert message in str(raised.value)
    assert str(file) in str(raised.value)


def test_a_name_that_the_list_has_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"paper\.yaml has no set 'Food'; it has Caltech101, CIFAR10"):
        read_list(LISTS / "paper.yaml", names=["Food"])
    with pytest.raises(InputError, match="there is no file"):
        read_list(tmp_path / "none.yaml")
