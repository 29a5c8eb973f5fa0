"""Files written a tensor at a time are what the safetensors library writes and reads."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from growclip_ds.checkpoint.weights_file import SafetensorsReader, SafetensorsWriter

TENSORS = {
    "odd": torch.arange(3, dtype=torch.uint8),
    "mask": torch.tensor([[True, False], [False, True]]),
    "half": torch.tensor([1.5, -2, torch.inf], dtype=torch.bfloat16),
    "weight": torch.randn(5, 7, generator=torch.Generator().manual_seed(0)),
    "transposed": torch.arange(6.0).view(2, 3).T,
    "double": torch.tensor([[1 / 3]], dtype=torch.float64),
    "ids": torch.tensor([-(2**40), 7]),
    "scalar": torch.tensor(3.25, dtype=torch.float16),
    "nothing": torch.empty(0, 4),
}
KINDS = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}


def test_the_library_reads_what_was_written_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with SafetensorsWriter(path, KINDS) as writer:
        for name in sorted(TENSORS):
            writer.write(name, TENSORS[name])
    assert path.stat().st_size == writer.size
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("ours", [True, False])
def test_reads_what_was_written_here_and_by_the_library(tmp_path: Path, ours: bool) -> None:
    path = tmp_path / "weights.safetensors"
    if ours:
        with SafetensorsWriter(path, KINDS) as writer:
            for name, tensor in TENSORS.items():
                writer.write(name, tensor)
    else:
        save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, path)
    reader = SafetensorsReader(path)
    for name, tensor in TENSORS.items():
        found = reader.read(name)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found, tensor)
    with pytest.raises(ValueError, match="no valid entry in the header: KeyError"):
        reader.read("other")
    reader.close()


def test_a_read_takes_as_many_calls_as_it_needs_and_ends_with_an_error_of_the_disk(tmp_path: Path) -> None:
    save_file({"a": torch.arange(9.0)}, tmp_path / "weights.safetensors")
    reader, original = SafetensorsReader(tmp_path / "weights.safetensors"), os.preadv
    with mock.patch.object(os, "preadv", lambda file, views, offset: original(file, [views[0][:5]], offset)):
        assert torch.equal(reader.read("a"), torch.arange(9.0))
    failing = mock.Mock(side_effect=OSError(errno.EIO, "Input/output error"))
    with mock.patch.object(os, "preadv", failing), pytest.raises(OSError, match="Input/output error"):
        reader.read("a")
    os.truncate(tmp_path / "weights.safetensors", 90)  # under a mapped file, the end of the process
    with pytest.raises(ValueError, match="the file ends at byte 90"):
        reader.read("a")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"data_offsets": [0, 16]}, r"bytes 0 to 16 of 12 for F32 \[3\]"),
        ({"data_offsets": [-4, 8]}, r"bytes -4 to 8"),
        ({"shape": [4]}, r"bytes 0 to 12 of 12 for F32 \[4\]"),
        ({"shape": 3}, "no valid entry in the header"),
        ({"dtype": "F31"}, "no valid entry in the header"),
        ({"data_offsets": [0.0, 12.0]}, "no valid entry in the header"),
    ],
)
def test_headers_that_are_damaged(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]} | entry}).encode()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    with pytest.raises(ValueError, match=message):
        SafetensorsReader(path).read("a")


@pytest.mark.parametrize("content", [b"", b"\x02", b"\xff" * 40, b"\x02" + bytes(7) + b"{]"])
def test_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(ValueError):  # noqa: PT011
        SafetensorsReader(tmp_path / "weights.safetensors")


def test_a_file_of_no_tensors(tmp_path: Path) -> None:
    SafetensorsWriter(tmp_path / "none.safetensors", {}).close()
    assert load_file(tmp_path / "none.safetensors") == {}


def test_refuses_what_was_not_announced(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "weights.safetensors", {"a": (torch.float32, (2,)), "b": (torch.int64, ())})
    with pytest.raises(ValueError, match="c is not one of the file's tensors"):
        writer.write("c", torch.zeros(2))
    with pytest.raises(ValueError, match=r"a is torch.float32 \(3,\), not torch.float32 \(2,\)"):
        writer.write("a", torch.zeros(3))
    with pytest.raises(ValueError, match=r"a is torch.bfloat16"):
        writer.write("a", torch.zeros(2, dtype=torch.bfloat16))
    writer.write("a", torch.zeros(2))
    with pytest.raises(ValueError, match="a was written before"):
        writer.write("a", torch.zeros(2))
    with pytest.raises(ValueError, match="1 tensors were not written, such as b"):
        writer.close()
