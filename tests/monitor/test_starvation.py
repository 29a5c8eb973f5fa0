"""A phase that keeps waiting for data warns of it once in a while, and names the remedy."""

from __future__ import annotations

import io
import os

from growclip_ds.growth.phases import Phase
from growclip_ds.monitor import RunMonitor
from growclip_ds.monitor.starvation import StarvationWatch
from growclip_ds.run.folder import RunFolder
from tests.monitor.runs import SPEC, Progress, config


def warned_at(shares: list[float], every: int = 10) -> list[int]:
    """The reports, counted from 0, after which a phase warns that it waits for data."""
    watch = StarvationWatch(workers=4)
    progress = [Progress(every * (place + 1), 10**6, data_wait_share=share) for place, share in enumerate(shares)]
    return [place for place, report in enumerate(progress) if watch.warning(report)]


def test_waiting_for_data_is_warned_of_when_it_goes_on():
    assert warned_at([0.9, 0.02, 0.02, 0.02]) == []  # the start of the workers
    assert warned_at([0.9, 0.9, 0.9]) == []
    assert warned_at([0.9, 0.3, 0.4, 0.2, 0.3, 0.3]) == [3]
    assert warned_at([0.9, 0.3, 0.09, 0.3, 0.3, 0.09, 0.2, 0.2, 0.2]) == [8]


def test_the_warning_comes_again_after_a_thousand_iterations():
    assert warned_at([0.5] * 250) == [3, 103, 203]
    assert warned_at([0.5] * 6, every=1000) == [3, 4, 5]


def test_the_warning_names_the_remedy(folder: RunFolder):
    stream = io.StringIO()
    monitor = RunMonitor(folder, config(), stream)
    monitor.start_phase(1, Phase.TRAIN, SPEC, 100, 0)
    for done in range(10, 50, 10):
        monitor.progress(Progress(done, 100, data_wait_share=0.345))
    monitor.close()
    (warning,) = [line for line in stream.getvalue().splitlines() if line.startswith("Warning")]
    assert warning.startswith("Warning: 34% of the time is spent waiting for data: raise data.workers (4 per rank; ")
    assert f"{os.cpu_count()} CPUs" in warning
    assert "local disk" in warning
    without = StarvationWatch(workers=0)
    texts = [without.warning(Progress(done, 100, data_wait_share=0.3)) for done in range(10, 50, 10)]
    assert "raise data.workers (0, which loads between iterations; " in texts[-1]
