"""The speed of a GPU as measured in a run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from growclip_ds.config.config import load_config
from growclip_ds.costs.begun import records_so_far
from growclip_ds.costs.speed import Speed
from growclip_ds.costs.steps import GrowthSteps
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import Phase
from growclip_ds.run.folder import RunFolder
from growclip_ds.run.records import PhaseRecord, Training


def measured_speed(run: Path, steps: GrowthSteps) -> Speed:
    """The speed of the last usable phase of a run; see `speed_so_far`.

    Raises:
        InputError: the folder holds no run, or the run has no usable phase.
    """
    speed = speed_so_far(run, steps)
    if speed is None:
        raise InputError(
            f"{run}: no phase has trained a GrowCLIP on pairs up to a checkpoint; train one, or use --throughput"
        )
    return speed


def speed_so_far(run: Path, steps: GrowthSteps) -> Speed | None:
    """FLOP/s per rank in the last finished `train` phase of a GrowCLIP, or else in one that is interrupted or running.

    None if there is neither. The phase's time includes start-up and evaluation, so a longer phase gives a better
    measurement.

    Args:
        run: the folder of the measured run.
        steps: the growth steps of the planned run, by which the FLOPs of a pair are counted.

    Raises:
        InputError: the folder holds no run, or a checkpoint cannot be read.
    """
    folder = RunFolder(run)
    if not folder.config_file.exists():
        raise InputError(f"{run} holds no run (no config.yaml in it); name the --output-dir of one that has trained")
    config = load_config(folder.config_file)
    usable, so_far = _usable(folder.records()), ""
    if not usable:
        usable, so_far = _usable(records_so_far(folder, config)), " so far"
    if not usable:
        return None
    record, training = usable[-1]
    sizes = config.model.sizes(steps.sizes.vocab_size)
    flops = steps.of_sizes(sizes).pair_flops(record.architecture, record.kind)
    rate = training.pairs_seen / record.device_seconds
    pairs = f"{rate:,.1f} pairs/s per rank of {record.architecture} on {training.device}"
    return Speed(rate * flops, f"measured: {run}, growth step {record.step}{so_far}, {pairs}")


def _usable(records: Iterable[PhaseRecord]) -> list[tuple[PhaseRecord, Training]]:
    return [
        (record, record.training)
        for record in records
        if record.phase is Phase.TRAIN
        and record.kind == "growclip"
        and record.training is not None
        and record.training.pairs_seen
    ]
