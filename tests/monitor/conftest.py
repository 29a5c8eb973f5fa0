"""Run folders: one that holds nothing yet, and one of a run that was interrupted and went on."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from growclip_ds import GrowthSpace
from growclip_ds.growth.phases import Phase
from growclip_ds.monitor import RunMonitor
from growclip_ds.run.folder import RunFolder
from growclip_ds.run.opening import open_run
from tests.monitor.runs import BASE, config, run_phase, wait_for_the_next_second


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return open_run(tmp_path / "run", config())


@pytest.fixture(scope="session")
def grown_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    """A run that was interrupted in its selection phase and went on; with what the second part printed."""
    folder = open_run(tmp_path_factory.mktemp("grown") / "run", config())
    supernet = GrowthSpace(BASE, 1, 1, 1).supernet
    first = RunMonitor(folder, config(), io.StringIO())
    run_phase(first, folder, 1, Phase.TRAIN, BASE)
    run_phase(first, folder, 2, Phase.FINETUNE, supernet)
    run_phase(first, folder, 2, Phase.SELECTION, supernet, stop=20)
    first.curves.flush()  # the process is killed

    wait_for_the_next_second()
    printed = io.StringIO()
    second = RunMonitor(folder, config(), printed)
    run_phase(second, folder, 2, Phase.SELECTION, supernet)
    run_phase(second, folder, 2, Phase.TRAIN, folder.selected_architecture(2))
    second.finish()
    second.close()
    return folder, printed.getvalue()
