"""Where a start of a phase begins: with its initial weights, at its newest checkpoint, or after its training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from growclip_ds.checkpoint.checkpoint import Checkpoint
from growclip_ds.distributed import on_every_rank
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import Phase
from growclip_ds.model.spec import ModelSpec, num_parameters
from growclip_ds.pipeline.context import RunContext
from growclip_ds.run.records import PhaseRecord, record_so_far
from growclip_ds.training.resume import newest_good


@dataclass(frozen=True)
class Beginning:
    """Where a start of a phase begins.

    Attributes:
        record: what the phase's earlier starts have done.
        weights: every parameter's value, taken one at a time.
        checkpoint: the checkpoint to resume the training from; None if the phase is new or trained.
        is_trained: whether the phase has its final weights: it was interrupted while it was evaluated.
    """

    record: PhaseRecord
    weights: Iterable[tuple[str, Tensor]]
    checkpoint: Checkpoint | None = None
    is_trained: bool = False

    @property
    def resume(self) -> Mapping[str, Any]:
        """The training state to restore; empty if there is none."""
        return {} if self.checkpoint is None else self.checkpoint.description["resume"]


def find_beginning(
    run: RunContext, step: int, phase: Phase, spec: ModelSpec, initial: Iterable[tuple[str, Tensor]]
) -> Beginning:
    """Finds what earlier starts of a phase have left. Collective.

    Raises:
        InputError: on every rank, if it cannot be used, or belongs to another model.
    """
    folder = run.folder
    is_trained = folder.is_trained(step, phase)
    if is_trained:
        kept = on_every_rank(lambda: Checkpoint(folder.weights(step, phase)))
    else:
        kept = newest_good(folder.checkpoints(step, phase), run.monitor.note)
    first = folder.iterations_before(step, phase)
    record = PhaseRecord(
        step=step,
        phase=phase,
        samples=run.inputs.samples(step),
        parameters=num_parameters(spec),
        kind=spec.kind,
        architecture=spec.architecture,
        first_iteration=first,
    )
    if kept is None:
        return Beginning(record, initial)
    if (kept.spec.kind, kept.spec.architecture, kept.sizes) != (spec.kind, spec.architecture, spec.sizes):
        raise InputError(  # another candidate has been selected since
            f"{kept.folder} is of {kept.spec.architecture}, but the {phase} phase of growth step {step} "
            f"trains {spec.architecture}: bring back the selection's phase.json as it was, or remove "
            f"{folder.phase(step, phase)} to train the phase again"
        )
    weights = ((name, kept.read(name)) for name in spec.shapes)
    return Beginning(record_so_far(kept) or record, weights, None if is_trained else kept, is_trained)
