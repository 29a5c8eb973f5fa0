"""Files written a tensor at a time are what the safetensors library writes and reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from growclip_ds.checkpoint.weights_file import SafetensorsWriter

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
    with SafetensorsWriter(path, KINDS, {"format": "pt"}) as writer:
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


def test_a_file_of_no_tensors(tmp_path: Path) -> None:
    SafetensorsWriter(tmp_path / "none.safetensors", {}).close()
    assert load_file(tmp_path / "none.safetensors") == {}


def test_refuses_what_was_not_announced(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "weights.safetensors", {"a": (torch.float32, (2,)), "b": (torch.int64, ())})
    with pytest.raises(ValueError, match="c is none of the file's tensors"):
        writer.write("c", torch.zeros(2))
    with pytest.raises(ValueError, match=r"a is torch.float32 \(3,\), not torch.float32 \(2,\)"):
        writer.write("a", torch.zeros(3))
    with pytest.raises(ValueError, match=r"a is torch.bfloat16"):
        writer.write("a", torch.zeros(2, dtype=torch.bfloat16))
    writer.write("a", torch.zeros(2))
    with pytest.raises(ValueError, match="a was written before"):
        writer.write("a", torch.zeros(2))
    with pytest.raises(ValueError, match="1 tensors were not written, b for one"):
        writer.close()
