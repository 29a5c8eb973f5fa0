"""Safetensors files, written and read one tensor at a time.

The library's own writer needs all tensors in memory at once. Its reader maps the file into memory: if a page cannot be
read (failing disk, stale file handle, truncated file), the process is killed by SIGBUS without a message.
"""

from __future__ import annotations

import json
import math
import os
import weakref
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}


class SafetensorsWriter:
    """Writes tensors of known dtypes and shapes in any order, each directly to its place in the file.

    Format (https://huggingface.co/docs/safetensors): the header's length (8 bytes, little-endian), a JSON header, the
    tensors' bytes without gaps. An exception in the `with` block closes the file incomplete.

    Args:
        path: path of the new file.
        tensors: dtype and shape of every tensor by name.

    Attributes:
        checksums: CRC-32 of every tensor written so far, by name.
        size: size of the complete file in bytes.
    """

    def __init__(self, path: Path | str, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self.path = Path(path)
        self.checksums: dict[str, str] = {}
        self._tensors = dict(tensors)
        self._offsets: dict[str, int] = {}
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # which `transformers` asks for
        end = 0
        # Widest dtypes first, so that every tensor is aligned to its element size.
        for name, (dtype, shape) in sorted(self._tensors.items(), key=lambda item: -item[1][0].itemsize):
            start, end = end, end + math.prod(shape) * dtype.itemsize
            self._offsets[name] = start
            header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._data_start = 8 + len(encoded)
        self.size = self._data_start + end
        self._file = self.path.open("wb", buffering=0)
        self._write_at(len(encoded).to_bytes(8, "little") + encoded, 0)

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes one tensor, from any device, and records the CRC-32 of its bytes in `checksums`.

        Raises:
            ValueError: the file has no such tensor, it was written before, or its dtype or shape differ.
        """
        if name not in self._tensors or name in self.checksums:
            problem = "was written before" if name in self.checksums else "is not one of the file's tensors"
            raise ValueError(f"{self.path}: {name} {problem}")
        if (tensor.dtype, tuple(tensor.shape)) != self._tensors[name]:
            dtype, shape = self._tensors[name]
            raise ValueError(f"{self.path}: {name} is {tensor.dtype} {tuple(tensor.shape)}, not {dtype} {shape}")
        data = memoryview(tensor_bytes(tensor))
        self._write_at(data, self._data_start + self._offsets[name])
        self.checksums[name] = checksum(data)

    def close(self) -> None:
        """Syncs the file to the disk and closes it.

        Raises:
            ValueError: a tensor was never written.
        """
        missing = [name for name in self._tensors if name not in self.checksums]
        if missing:
            self._file.close()
            raise ValueError(f"{self.path}: {len(missing)} tensors were not written, such as {missing[0]}")
        os.fsync(self._file.fileno())
        self._file.close()

    def _write_at(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        while view:  # a system call writes 2 GiB at most
            written = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[written:], offset + written

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._file.close()


class SafetensorsReader:
    """Reads single tensors of a file without memory-mapping it. The file is open until `close` or garbage collection.

    Args:
        path: path of the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a safetensors file.
    """

    def __init__(self, path: Path) -> None:
        file = path.open("rb", buffering=0)
        self.close = weakref.finalize(self, file.close)
        self._descriptor = file.fileno()
        length = bytearray(8)
        self._read_at(memoryview(length), 0)
        self._data_start = 8 + int.from_bytes(length, "little")
        self._data_size = os.fstat(self._descriptor).st_size - self._data_start
        if self._data_size < 0:
            raise ValueError("its header is longer than the file")
        header = bytearray(self._data_start - 8)
        self._read_at(memoryview(header), 8)
        self._entries: dict[str, Any] = json.loads(header)

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file has no such tensor, its header entry is damaged, or the file is truncated.
        """
        try:
            entry = self._entries[name]
            dtype, shape = _DTYPES_BY_NAME[entry["dtype"]], tuple(entry["shape"])
            start, end = entry["data_offsets"]
            if not 0 <= start <= end <= self._data_size or end - start != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"bytes {start} to {end} of {self._data_size} for {entry['dtype']} {list(shape)}")
            tensor = torch.empty(shape, dtype=dtype)
            self._read_at(tensor_bytes(tensor), self._data_start + start)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no valid entry in the header: {error!r}") from error
        return tensor

    def _read_at(self, view: memoryview, offset: int) -> None:
        while view:  # a system call reads 2 GiB at most
            count = os.preadv(self._descriptor, [view], offset)
            if not count:
                raise ValueError(f"the file ends at byte {offset}")
            view, offset = view[count:], offset + count


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of the tensor's elements in row-major order, copied to the CPU if need be."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def checksum(data: memoryview) -> str:
    """CRC-32 as 8 hexadecimal digits. Detects damage, but is no protection against tampering."""
    return f"{zlib.crc32(data):08x}"
