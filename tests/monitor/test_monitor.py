"""A run tells what it does, and only on the first rank."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

from growclip_ds.growth.phases import Phase
from growclip_ds.monitor import RunMonitor, open_monitor
from growclip_ds.run.folder import RunFolder
from growclip_ds.run.opening import open_run
from tests.monitor.runs import BASE, config, run_phase


def test_what_a_run_prints_into_a_pipe(grown_run):
    folder, printed = grown_run
    lines = printed.splitlines()
    assert "\x1b" not in printed
    assert "\r" not in printed
    assert max(len(line) for line in lines if "tensorboard" not in line) <= 100
    text = "\n".join(lines)
    assert re.search(r"step 2/2 selection: 40 iterations in 0:\d\d, loss 3\.800, 512 samples/s", text)
    assert "step 2/2 selected (0, 2, 1, 1, 2, 0) of 64: 1.23 M parameters, accuracy 41.2 %, metric 41.99" in text
    assert "step 2/2 zero-shot: scenes_objects 40.0 %, scenes_retrieval 40.0 %" in text
    assert f"tensorboard --logdir {folder.path}" in printed


def test_choosing_by_what_is_reported_is_warned_of(folder: RunFolder):
    stream = io.StringIO()
    evaluation = {"datasets": ["eval/scenes_selection"]}
    reported = config().model_copy(update={"evaluation": type(config().evaluation).model_validate(evaluation)})
    RunMonitor(folder, reported, stream)
    assert stream.getvalue().startswith(
        "Warning: selection.dataset, eval/scenes_selection, is one of evaluation.datasets"
    )


def monitor_of_a_rank(path: str) -> tuple[str, list[str]]:
    folder = open_run(path, config())
    monitor = open_monitor(folder, config(), io.StringIO())
    run_phase(monitor, folder, 1, Phase.TRAIN, BASE)
    monitor.finish()
    monitor.close()
    return type(monitor).__name__, sorted(os.listdir(folder.tensorboard))  # noqa: PTH208


def test_only_the_first_rank_tells(group, tmp_path: Path):
    first, second = group(2).run(monitor_of_a_rank, str(tmp_path / "run"))
    assert (first[0], second[0]) == ("RunMonitor", "Monitor")
    assert first[1] == ["growth", "training"]
    for part in first[1]:
        assert len(list((tmp_path / "run" / "tensorboard" / part).iterdir())) == 1
