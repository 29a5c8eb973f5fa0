"""What a phase has trained on and met with so far: over all ranks, and its earlier starts."""

from __future__ import annotations

from collections import Counter
from typing import Any

from growclip_ds.data.faults import Cause
from growclip_ds.data.stream import TrainingStream
from growclip_ds.distributed import all_gather_object, is_main
from growclip_ds.training.health import Health

_ADDED_UP = ("pairs_seen", "text_tokens_seen", "dead_workers")


class PhaseCounts:
    """Keeps a phase's record up to date.

    Args:
        record: of the phase, as its last start has left it.
        stream: of this start.
        health: of the phase.

    Attributes:
        seen: what this rank has trained on in this start.
    """

    def __init__(self, record: dict[str, Any], stream: TrainingStream, health: Health) -> None:
        self._record, self._stream, self._health = record, stream, health
        self._before = {key: record.get(key, 0) for key in _ADDED_UP}
        self.seen: Counter[str] = Counter()
        if is_main():  # for all ranks, whichever they were
            stream.faults.update({Cause(cause): n for cause, n in record.get("broken_samples", {}).items()})

    def update(self) -> None:
        """Brings the record up to date. Collective."""
        mine = Counter(self.seen, dead_workers=self._stream.dead_workers)
        seen = sum(all_gather_object(mine), Counter())
        broken = sum(all_gather_object(self._stream.faults), Counter())
        self._record |= {key: before + seen[key] for key, before in self._before.items()}
        self._record["broken_samples"] = {str(cause): n for cause, n in broken.items()}
        self._record["skipped_iterations"] = self._health.skipped
