"""The folder of a run that has begun nothing yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from growclip_ds.run.folder import RunFolder
from growclip_ds.run.opening import open_run
from tests.run.folders import config


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return open_run(tmp_path / "runs" / "one", config())
