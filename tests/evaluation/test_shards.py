"""Who reads what of a set's tars."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from growclip_ds.data import remote_stream
from growclip_ds.errors import InputError
from growclip_ds.evaluation import load_evaluation_set, shards
from growclip_ds.evaluation.datasets import EvaluationSet
from tests.evaluation import sets

LABELS = [number % 7 for number in range(23)]
SIZES = [3, 0, 11, 1, 8]


@pytest.fixture
def dataset(tmp_path: Path) -> EvaluationSet:
    return load_evaluation_set(sets.write_classification_set(tmp_path / "things", LABELS, SIZES))


@pytest.mark.parametrize("ranks", [1, 2, 3, 30])
def test_ranks_share_a_local_set_and_read_nothing_else(
    dataset: EvaluationSet, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    own = shards.content
    monkeypatch.setattr(shards, "content", lambda tar, member: (read.append(member.name), own(tar, member))[1])
    shares = []
    for rank in range(ranks):
        share = list(shards.local_share(dataset.shards, dataset.counts, dataset.wants, rank, ranks))
        shares.append([sample["__key__"] for sample in share])
        assert all(sample["cls"] == str(LABELS[int(sample["__key__"][1:])]).encode() for sample in share)
    assert [key for share in shares for key in share] == [f"s{number:04d}" for number in range(23)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert len(read) == len(set(read)) == 2 * 23  # a picture and an annotation each, once


@pytest.mark.parametrize("ranks", [1, 2, 3, 30])
def test_ranks_share_the_tars_of_a_remote_set(dataset: EvaluationSet, ranks: int) -> None:
    urls = [f"pipe:cat {shard}" for shard in dataset.shards]
    shares = [list(shards.remote_share(urls, dataset.wants, rank, ranks)) for rank in range(ranks)]
    opened = [{sample["__url__"] for sample in share} for share in shares]
    assert sum(len(urls) for urls in opened) == len(set().union(*opened)) == 4  # one is empty
    assert sorted(sample["__key__"] for share in shares for sample in share) == [f"s{n:04d}" for n in range(23)]


def test_a_set_that_shrinks_after_it_was_opened_is_an_error(dataset: EvaluationSet) -> None:
    sets.write_tar(Path(dataset.shards[2]), [("s0003.png", b"?"), ("s0003.cls", b"3")])
    with pytest.raises(InputError, match=r"2\.tar: 1 samples instead of 11; the file has changed"):
        list(shards.local_share(dataset.shards, dataset.counts, dataset.wants, 0, 1))
    Path(dataset.shards[2]).unlink()
    with pytest.raises(InputError, match=r"2\.tar: not a readable tar file .*No such file"):
        list(shards.local_share(dataset.shards, dataset.counts, dataset.wants, 1, 2))


@pytest.mark.parametrize("cut", ["between members", "in a member", "in a header", "leaving zeros"])
def test_a_tar_that_is_cut_off_is_an_error(
    dataset: EvaluationSet, cut: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a smaller set, as tarfile has it where the tar ends between members."""
    monkeypatch.setattr(remote_stream, "PAUSE", 0.0)
    with tarfile.open(dataset.shards[2]) as tar:
        member = tar.getmembers()[6]  # the fourth sample's first
    file = Path(dataset.shards[2])
    size = {"in a member": member.offset_data + 1, "in a header": member.offset + 100}.get(cut, member.offset)
    zeros = 2_000_000 if cut == "leaving zeros" else 0
    file.write_bytes(file.read_bytes()[:size] + bytes(zeros))
    with pytest.raises(InputError, match=r"2\.tar: not a readable tar file \(.*\); copy or make it again"):
        list(shards.local_headers(str(file), dataset.wants))
    stream = shards.stream(f"pipe:cat {file}", dataset.wants)
    assert [next(stream)["__key__"] for _ in range(2)] == ["s0003", "s0004"]
    with pytest.raises(InputError, match=r"2\.tar: .*; correct the URL, or check that it can be fetched"):
        list(stream)
