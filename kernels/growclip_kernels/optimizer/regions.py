"""A flat shard, the regions of it that an update covers, and the tables by which a single launch updates them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 1024  # elements updated by one program
LONGEST = 2**31 - 2 * BLOCK  # most elements of a run, since positions in it are 32-bit integers


class Span(NamedTuple):
    """`rows` runs of `columns` elements in a flat tensor, `stride` from the start of one to the start of the next."""

    offset: int
    rows: int
    columns: int
    stride: int

    def of(self, flat: Tensor) -> Tensor:
        """The span of a 1-D tensor as a view: (columns,) if there is only one row, else (rows, columns)."""
        if self.rows == 1:
            return flat[self.offset : self.offset + self.columns]
        step = flat.stride(0)
        offset = flat.storage_offset() + self.offset * step
        return flat.as_strided((self.rows, self.columns), (self.stride * step, step), offset)


class Buffers(NamedTuple):
    """A shard's weights, gradients and moments, each (n,) fp32, dense, in one layout. Updates overwrite gradients."""

    weight: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor

    def of(self, span: Span) -> Buffers:
        """Views of a span of each buffer."""
        return Buffers(*(span.of(buffer) for buffer in self))


class Region(NamedTuple):
    """The part of one tensor that an update covers.

    Attributes:
        spans: disjoint spans of the shard; none if the shard holds nothing of the tensor.
        is_matrix: whether the tensor has weight decay and a trust ratio.
    """

    spans: tuple[Span, ...]
    is_matrix: bool


@dataclass(frozen=True)
class Tables:
    """The regions in the form that kernels read. A block, the work of one program, is up to BLOCK elements of one span.

    Attributes:
        spans: (spans, 6) int64: tensor, offset, columns, stride, elements, first block.
        span_of: (blocks,) int32: the span of each block.
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
    """The regions of one shard, one per tensor.

    Args:
        regions: the regions in any order; a tensor's number is its region's index.

    Attributes:
        regions: the same, as a tuple.
        end: index past the last element that is updated.

    Raises:
        ValueError: a run has more than `LONGEST` elements.
    """

    def __init__(self, regions: Sequence[Region]) -> None:
        self.regions = tuple(regions)
        spans = [span for region in self.regions for span in region.spans]
        self.end = max((s.offset + (s.rows - 1) * s.stride + s.columns for s in spans), default=0)
        if (longest := max((span.columns for span in spans), default=0)) > LONGEST:
            raise ValueError(f"a rank holds {longest} elements of one tensor, more than {LONGEST}; use more ranks")
        self._tables: dict[torch.device, Tables] = {}

    def __len__(self) -> int:
        return len(self.regions)

    def tables(self, device: torch.device) -> Tables:
        """The tables on a device, built on first use."""
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
    """A copy on the device, without synchronisation."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
