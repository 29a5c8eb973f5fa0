"""Counts of the data that a phase has trained on so far, over all ranks and starts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from growclip_ds.data.faults import Cause
from growclip_ds.data.stream import TrainingStream
from growclip_ds.distributed import all_gather_object, is_main
from growclip_ds.run.records import Training
from growclip_ds.training.health import Health


class PhaseCounts:
    """The counts of a phase, continued from its previous start.

    Args:
        before: the training record of the previous start.
        stream: the training stream of this start.
        health: the numerical health of the phase.

    Attributes:
        seen: numbers of pairs and caption tokens that this rank has trained on in this start.
    """

    def __init__(self, before: Training, stream: TrainingStream, health: Health) -> None:
        self._before, self._stream, self._health = before, stream, health
        self.seen: Counter[str] = Counter()
        if is_main():  # the total of all ranks, whose number may have changed
            stream.faults.update(before.broken_samples)

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
