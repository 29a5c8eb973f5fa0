"""The intersection of a leading slice of a tensor with a contiguous range of its elements.

A sampled subnet uses the leading rows and columns of a weight; a rank holds a contiguous range of the weight, with
arbitrary ends. Their intersection is a few strided views, so updating only the subnet needs no mask in memory and
touches no other element.
"""

from __future__ import annotations

import functools
import math

from growclip_ds.architecture import Shape
from growclip_kernels.optimizer import Span


@functools.lru_cache(maxsize=1 << 16)  # the same candidates are sampled repeatedly
def leading_box(shape: Shape, box: Shape, start: int, numel: int) -> tuple[Span, ...]:
    """The part of a leading slice that lies in a contiguous range of a row-major tensor.

    Args:
        shape: shape of the tensor.
        box: shape of the leading slice, no larger than `shape` in any dimension.
        start: index of the range's first element in the flat tensor.
        numel: number of elements in the range.

    Returns:
        Disjoint spans in ascending order, with offsets from the start of the range: at most one if only the first
        dimension is cut, at most three if two are.

    Raises:
        ValueError: the box does not fit into the shape.
    """
    if len(box) != len(shape) or any(limit > size or limit < 0 for limit, size in zip(box, shape, strict=True)):
        raise ValueError(f"a slice of shape {box} does not fit into a tensor of shape {shape}")
    return tuple(_spans(*_merge(shape, box), start, start + numel, -start))


def _merge(shape: Shape, box: Shape) -> tuple[list[int], list[int]]:
    """The same slice in as few dimensions as possible: a dimension that is not cut is merged into the one before it."""
    sizes, limits = [1], [1]
    for size, limit in zip(shape, box, strict=True):
        if limit == size:
            sizes[-1] *= size
            limits[-1] *= size
        else:
            sizes.append(size)
            limits.append(limit)
    if len(sizes) > 1 and sizes[0] == 1:
        del sizes[0], limits[0]
    return sizes, limits


def _spans(sizes: list[int], limits: list[int], start: int, end: int, shift: int) -> list[Span]:
    """Spans of the slice `limits` of a tensor of shape `sizes` within [start, end), with offsets moved by `shift`."""
    if len(sizes) == 1:
        start, end = max(start, 0), min(end, limits[0])
        return [Span(start + shift, 1, end - start, end - start)] if start < end else []
    width = math.prod(sizes[1:])
    start, end = max(start, 0), min(end, limits[0] * width)
    if start >= end or not width:
        return []
    first, last = -(-start // width), end // width  # whole rows are first, ..., last - 1
    if len(sizes) == 2 and first < last and limits[1]:
        whole = [Span(first * width + shift, last - first, limits[1], width)]
    else:
        whole = [
            span for row in range(first, last) for span in _spans(sizes[1:], limits[1:], 0, width, row * width + shift)
        ]
    if first > last:  # the range lies within one row
        return _row(sizes, limits, last, start, end, shift, width)
    before = _row(sizes, limits, first - 1, start, first * width, shift, width) if start < first * width else []
    after = _row(sizes, limits, last, last * width, end, shift, width) if last * width < end else []
    return [*before, *whole, *after]


def _row(sizes: list[int], limits: list[int], row: int, start: int, end: int, shift: int, width: int) -> list[Span]:
    """Spans within one row, which contains the range [start, end)."""
    begin = row * width
    return _spans(sizes[1:], limits[1:], start - begin, end - begin, begin + shift)
