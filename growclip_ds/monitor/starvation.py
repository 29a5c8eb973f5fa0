"""Warns when training is starved of data, and suggests remedies."""

from __future__ import annotations

import os

from growclip_ds.monitor.reports import Progress

NOTABLE_WAIT = 0.1  # fraction of the time spent waiting for data, above which it is shown
_REPORTS = 3  # consecutive reports above it before a warning
_PAUSE = 1000  # iterations between warnings


class StarvationWatch:
    """Warns, at intervals, that a phase keeps waiting for data. The first report, which has the start-up, is ignored.

    Args:
        workers: data loader workers per rank.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._is_first = True
        self._shares: list[float] = []  # of the last reports
        self._silent_until = 0

    def warning(self, progress: Progress) -> str | None:
        """The warning that this report gives rise to; None if there is none."""
        if self._is_first:
            self._is_first = False
            return None
        self._shares = [*self._shares, progress.data_wait_share][-_REPORTS:]
        if len(self._shares) < _REPORTS or min(self._shares) <= NOTABLE_WAIT or progress.iteration < self._silent_until:
            return None
        self._silent_until = progress.iteration + _PAUSE
        share = sum(self._shares) / _REPORTS
        workers = f"{self.workers} per rank" if self.workers else "0, which loads between iterations"
        return (
            f"{share:.0%} of the time is spent waiting for data: raise data.workers ({workers}; this machine has "
            f"{os.cpu_count()} CPUs), copy the shards to faster storage such as a local disk, or store smaller images "
            "(a short side of 1.5 times model.image_size is enough)"
        )
