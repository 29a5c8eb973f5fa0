from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from growclip_ds.files import write_json, write_text


def test_files_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "deep" / "file.json"
    write_json(file, {"first": 1})

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_text(file, "second")
    assert json.loads(file.read_text()) == {"first": 1}
    monkeypatch.undo()
    write_text(file, "third")
    assert file.read_text() == "third"
    assert [path.name for path in file.parent.iterdir()] == ["file.json"]
