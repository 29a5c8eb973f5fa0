"""A run's folder holds what its growth steps came to."""

from __future__ import annotations

from growclip_ds import Architecture
from growclip_ds.growth.selection import Candidate
from growclip_ds.monitor import read_summaries
from tests.monitor.runs import BASE, SETS


def test_summaries_are_read_from_the_folder(grown_run):
    folder, _ = grown_run
    first, second = read_summaries(folder)
    assert (first.step, first.architecture, first.samples, first.seconds) == (1, BASE, 3000, 60.0)
    assert (first.before, first.after, first.candidates) == ({}, dict.fromkeys(SETS, 30.0), ())
    assert first.averaged == [SETS[0]]  # of classification
    assert (second.architecture, second.seconds) == (Architecture(0, 2, 1, 1, 2, 0), 180.0)
    assert (second.before, second.after) == (first.after, dict.fromkeys(SETS, 40.0))
    assert second.selection_set == "scenes_selection"
    assert len(second.candidates) == 64
    assert second.candidates[0] == Candidate(second.architecture, 1_234_567, 41.234, 41.987)
