"""A flat shard, which of its elements an update concerns, and the tables by which one launch finds them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 1024  # elements that a program updates
LONGEST = 2**31 - 2 * BLOCK  # elements of a run: positions in it are 32-bit integers


class Span(NamedTuple):
    """`rows` runs of `columns` elements in a flat tensor, `stride` from the start of one to the start of the next."""

    offset: int
    rows: int
    columns: int
    stride: int

    def of(self, flat: Tensor) -> Tensor:
        """The span of a 1-D tensor as a view: (columns,) if there is but one row, else (rows, columns)."""
        if self.rows == 1:
            return flat[self.offset : self.offset + self.columns]
        step = flat.stride(0)
        offset = flat.storage_offset() + self.offset * step
        return flat.as_strided((self.rows, self.columns), (self.stride * step, step), offset)


class Buffers(NamedTuple):
    """What an update works on: (n,) fp32 each, dense, laid out alike. The gradient's memory is used up."""

    weight: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor

    def of(self, span: Span) -> Buffers:
        """A span of each, as views."""
        return Buffers(*(span.of(buffer) for buffer in self))


class Region(NamedTuple):
    """What is updated of one tensor.

    Attributes:
        spans: disjoint; none where the shard holds nothing of it.
        is_matrix: whether it has weight decay and a trust ratio.
    """

    spans: tuple[Span, ...]
    is_matrix: bool


@dataclass(frozen=True)
class Tables:
    """Regions as kernels read them. A block is up to BLOCK elements of one span, a program's work.

    Attributes:
        spans: (spans, 6) int64: tensor, offset, columns, stride, elements, first block.
        span_of: (blocks,) int32.
        first_block: (tensors + 1,) int32: the blocks of tensor t are first_block[t], ..., first_block[t + 1] - 1.
        is_matrix: (tensors,) int32, 1 or 0.
    """

    spans: Tensor
    span_of: Tensor
    first_block: Tensor
    is_matrix: Tensor

    @property
    def blocks(self) -> int:
        return self.span_of.numel()


class Regions:
    """The regions of one shard, a tensor each.

    Args:
        regions: in any order; tensors are known by their place in it.

    Attributes:
        regions: the same.
        end: behind the last element that is updated.

    Raises:
        ValueError: a run of more than 2^31 elements.
    """

    def __init__(self, regions: Sequence[Region]) -> None:
        self.regions = tuple(regions)
        spans = [span for region in self.regions for span in region.spans]
        self.end = max((s.offset + (s.rows - 1) * s.stride + s.columns for s in spans), default=0)
        if (longest := max((span.columns for span in spans), default=0)) > LONGEST:
            raise ValueError(f"a rank holds {longest} elements of one tensor; spread it over more ranks")
        self._tables: dict[torch.device, Tables] = {}

    def __len__(self) -> int:
        return len(self.regions)

    def tables(self, device: torch.device) -> Tables:
        """Made and copied to the device when first asked for."""
        if device not in self._tables:
            self._tables[device] = self._build(device)
        return self._tables[device]

    def _build(self, device: torch.device) -> Tables:
        spans = np.array(
            [
                (tensor, span.offset, span.columns, span.stride, span.rows * span.columns)
                for tensor, region in enumerate(self.regions)
                for span in region.spans
            ],
            dtype=np.int64,
        ).reshape(-1, 5)
        blocks = -(-spans[:, 4] // BLOCK)
        ends = np.cumsum(blocks)
        of_tensor = np.bincount(spans[:, 0], weights=blocks, minlength=len(self.regions))
        columns = {
            "spans": np.column_stack([spans, ends - blocks]),
            "span_of": np.repeat(np.arange(len(spans), dtype=np.int32), blocks),
            "first_block": np.concatenate([[0], np.cumsum(of_tensor)]).astype(np.int32),
            "is_matrix": np.array([region.is_matrix for region in self.regions], dtype=np.int32),
        }
        return Tables(**{name: to_device(torch.from_numpy(table), device) for name, table in columns.items()})


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy for which the host does not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
