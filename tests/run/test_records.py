"""What older and newer records say alike."""

from __future__ import annotations

import pytest

from growclip_ds.run.records import device_seconds


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"seconds": 10.0, "ranks": 2, "device_seconds": 95.0}, 95.0),  # of which some with more ranks
        ({"seconds": 10.0, "ranks": 2}, 20.0),
        ({"seconds": 10.0}, None),
        ({"seconds": 0.0, "ranks": 2, "device_seconds": 0.0}, 0.0),
    ],
)
def test_device_seconds(record: dict[str, float], expected: float | None) -> None:
    assert device_seconds(record) == expected
