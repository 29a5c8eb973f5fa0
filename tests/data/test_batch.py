from __future__ import annotations

from pathlib import Path

import pytest
import torch

from growclip_ds.data.batch import BatchDecoder, BatchLoader, batches_in_order
from growclip_ds.data.faults import Cause, Fault
from growclip_ds.data.pictures import decode_picture
from growclip_ds.data.shards import index_shards
from growclip_ds.data.stream import TrainingStream
from tests.data.corpus import caption, pair, picture, small_tokenizer, write_shard, write_shards
from tests.group import Groups


def test_rows_belong_together(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    index = index_shards(sorted(write_shards(tmp_path, samples=20).glob("*.tar")))
    batch, faults = BatchLoader(index, BatchDecoder(tokenizer, image_size=16))[[13, 2, 2]]
    assert batch.keys == ["000013", "000002", "000002"]
    assert len(batch) == 3
    assert batch.images.dtype == torch.uint8
    for row, number in enumerate((13, 2, 2)):
        assert torch.equal(batch.images[row], decode_picture(picture(number), 16))
    expected = tokenizer([caption(number) for number in (13, 2, 2)])
    assert torch.equal(batch.text.ids, expected.ids)
    assert torch.equal(batch.text.cu_seqlens, expected.cu_seqlens)
    assert faults == []


BROKEN = {
    Cause.BROKEN_PICTURE: {"jpg": picture(3)[:100]},
    Cause.EMPTY_CAPTION: {"txt": b" \n"},
    Cause.CAPTION_NOT_UTF8: {"txt": b"caf\xe9"},
}


@pytest.mark.parametrize("cause", BROKEN)
def test_a_broken_sample_leaves_its_place_empty(tmp_path: Path, cause: Cause) -> None:
    samples = [pair(number) | (BROKEN[cause] if number == 1 else {}) for number in range(3)]
    index = index_shards([write_shard(tmp_path / "0.tar", samples)])
    batch, faults = BatchLoader(index, BatchDecoder(small_tokenizer(), image_size=16))[[0, 1, 2]]
    assert batch.keys == ["000000", "000002"]
    assert torch.equal(batch.images[1], decode_picture(picture(2), 16))
    assert batch.text.num_captions == 2
    assert faults == [Fault("000001", cause)]


def test_nothing_but_broken_samples(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", [pair(number) | {"jpg": b""} for number in range(2)])
    index = index_shards([shard])
    loader = BatchLoader(index, BatchDecoder(small_tokenizer(), image_size=16))
    batch, faults = loader[[0, 1]]
    assert batch.images.shape == (0, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.text.num_captions == 0
    assert batch.keys == []
    assert [fault.cause for fault in faults] == [Cause.BROKEN_PICTURE] * 2
    shard.unlink()
    fresh = BatchLoader(index, BatchDecoder(small_tokenizer(), image_size=16))
    assert fresh[[0]].faults == [Fault(str(shard), Cause.UNREADABLE_SHARD)]


def test_a_batch_moves_as_a_whole(tmp_path: Path) -> None:
    index = index_shards(sorted(write_shards(tmp_path, samples=3).glob("*.tar")))
    batch = BatchLoader(index, BatchDecoder(small_tokenizer(), image_size=16))[[0, 1]].batch.to("meta")
    assert {batch.images.device.type, batch.text.ids.device.type, batch.text.cu_seqlens.device.type} == {"meta"}
    assert batch.keys == ["000000", "000001"]


def keys_in_order(folder: str, batch_size: int) -> list[list[str]]:
    index = index_shards(sorted(Path(folder).glob("*.tar")))
    return [batch.keys for batch in batches_in_order(index, small_tokenizer(), 16, batch_size)]


def test_ranks_share_an_index_in_order(tmp_path: Path, group: Groups) -> None:
    folder = write_shards(tmp_path, samples=11)
    everything = [f"{number:06d}" for number in range(11)]
    assert keys_in_order(str(folder), 4) == [everything[:4], everything[4:8], everything[8:]]
    first, second = group(2).run(keys_in_order, str(folder), 4)
    assert [key for keys in first + second for key in keys] == everything
    assert [len(keys) for keys in first + second] == [4, 1, 4, 2]


def test_pictures_are_exact_where_asked_for_and_in_evaluation(tmp_path: Path) -> None:
    large = pair(0) | {"jpg": picture(0, 96, 80)}  # decoded at a fraction of its size, unless exactly
    index = index_shards([write_shard(tmp_path / "0.tar", [large])])
    exact, fast = (decode_picture(large["jpg"], 16, exact) for exact in (True, False))
    assert not torch.equal(exact, fast)
    tokenizer = small_tokenizer()
    assert torch.equal(BatchLoader(index, BatchDecoder(tokenizer, 16))[[0]].batch.images[0], fast)
    assert torch.equal(BatchLoader(index, BatchDecoder(tokenizer, 16, exact=True))[[0]].batch.images[0], exact)
    assert torch.equal(next(batches_in_order(index, tokenizer, 16, 1)).images[0], exact)
    options = {"image_size": 16, "global_batch_size": 1, "epochs": 1, "seed": 0}
    for asked, expected in ((False, fast), (True, exact)):
        (batches,) = TrainingStream(index, tokenizer, exact=asked, **options)
        assert torch.equal(batches[0].images[0], expected)
