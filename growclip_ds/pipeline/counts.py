"""What a phase's training counts: the data it has trained on, broken samples, iterations without an update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from growclip_ds.data.fault_limit import FaultLimit
from growclip_ds.data.faults import Cause
from growclip_ds.data.stream import TrainingStream
from growclip_ds.distributed import all_gather_object, is_main
from growclip_ds.run.records import Training
from growclip_ds.training.health import Health


class PhaseCounts:
    """The counts of a phase, continued from its previous start.

    Args:
        stream: the training stream of this start.
        health: the numerical health of the phase; its state is restored.
        max_broken_share: the share of broken samples above which the run ends.
        before: the training record of the previous start.
        resume: the `state` of the previous start; empty if there was none.

    Attributes:
        limit: the limit on broken samples.
        seen: numbers of pairs and caption tokens that this rank has trained on in this start.
    """

    def __init__(
        self,
        stream: TrainingStream,
        health: Health,
        max_broken_share: float,
        before: Training,
        resume: Mapping[str, Any],
    ) -> None:
        self._stream, self._health, self._before = stream, health, before
        self.seen: Counter[str] = Counter()
        self.limit = FaultLimit(stream.samples, max_broken_share, resume.get("samples_read", 0))
        if resume:
            health.state = resume["health"]
        if is_main():  # the total of all ranks, whose number may have changed
            stream.faults.update(before.broken_samples)

    @property
    def state(self) -> dict[str, Any]:
        """What a resumed phase restores, as JSON, besides its training record."""
        return {"samples_read": self.limit.read, "health": self._health.state}

    def added_to(self, training: Training) -> Training:
        """The training record with the counts up to now. Collective."""
        mine = self.seen + Counter(dead_workers=self._stream.dead_workers)
        seen: Counter[str] = sum(all_gather_object(mine), Counter())
        broken: Counter[Cause] = sum(all_gather_object(self._stream.faults), Counter())
        return replace(
            training,
            pairs_seen=self._before.pairs_seen + seen["pairs_seen"],
            text_tokens_seen=self._before.text_tokens_seen + seen["text_tokens_seen"],
            dead_workers=self._before.dead_workers + seen["dead_workers"],
            broken_samples=dict(broken),
            skipped_iterations=self._health.skipped,
        )
