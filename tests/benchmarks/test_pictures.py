"""Reading captions from shards needs no package that only writing them does."""

from __future__ import annotations

import importlib
import sys

import pytest

from benchmarks import packing, pictures


def test_captions_are_compared_without_webdataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)  # as if it was not installed
    importlib.reload(pictures)
    importlib.reload(packing)
