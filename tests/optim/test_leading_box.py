"""Leading slices of flat pieces, against index arithmetic."""

from __future__ import annotations

import random

import pytest
import torch

from growclip_ds.optim.leading_box import leading_box


def check(shape: tuple[int, ...], box: tuple[int, ...], start: int, numel: int) -> int:
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    inside = whole[tuple(slice(limit) for limit in box)].flatten().tolist()
    piece = whole.flatten()[start : start + numel].clone()
    spans = leading_box(shape, box, start, numel)
    found = torch.cat([span.of(piece).flatten() for span in spans]).tolist() if spans else []
    assert found == [index for index in inside if start <= index < start + numel]
    for span in spans:
        span.of(piece).fill_(-1)
    assert (piece == -1).sum() == len(found)
    assert all(span.of(piece).data_ptr() >= piece.data_ptr() for span in spans)
    return len(spans)


def test_against_index_arithmetic() -> None:
    draw = random.Random(0)
    for _ in range(4000):
        shape = tuple(draw.randint(1, 6) for _ in range(draw.randint(1, 4)))
        box = tuple(size if draw.random() < 0.4 else draw.randint(0, size) for size in shape)
        total = torch.Size(shape).numel()
        start = draw.randint(0, total)
        check(shape, box, start, draw.randint(0, total - start))


@pytest.mark.parametrize(
    ("shape", "box", "most"),
    [
        ((7,), (4,), 1),
        ((8, 6), (5, 6), 1),  # fewer rows
        ((8, 6), (8, 4), 3),  # fewer columns
        ((8, 6), (5, 4), 3),
        ((8, 3, 2, 2), (5, 3, 2, 2), 1),  # the patch embedding
        ((2, 3, 5), (2, 3, 4), 3),
    ],
)
def test_spans_are_few(shape: tuple[int, ...], box: tuple[int, ...], most: int) -> None:
    total = torch.Size(shape).numel()
    counts = [check(shape, box, start, end - start) for start in range(total) for end in range(start, total + 1)]
    assert max(counts) == most


def test_spans_of_a_view_with_an_offset_stay_in_it() -> None:
    flat = torch.zeros(100)
    for span in leading_box((6, 5), (4, 3), 7, 20):
        span.of(flat[30:60]).fill_(1)
    inside = [30 + i - 7 for i in range(7, 27) if i // 5 < 4 and i % 5 < 3]
    assert flat.nonzero().flatten().tolist() == inside


def test_box_must_fit() -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\) does not fit into a tensor of shape \(3, 3\)"):
        leading_box((3, 3), (4, 3), 0, 9)
    with pytest.raises(ValueError, match="does not fit"):
        leading_box((3, 3), (3,), 0, 9)
