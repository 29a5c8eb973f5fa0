"""The speed of a GPU as measured in a run."""

from __future__ import annotations

from pathlib import Path

from growclip_ds.config.config import load_config
from growclip_ds.costs.speed import Speed
from growclip_ds.costs.steps import GrowthSteps
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import Phase
from growclip_ds.run.folder import RunFolder


def measured_speed(run: Path, steps: GrowthSteps) -> Speed:
    """The speed of the last usable phase of a run; see `speed_so_far`.

    Raises:
        InputError: the folder holds no run, or the run has no usable phase.
    """
    speed = speed_so_far(run, steps)
    if speed is None:
        raise InputError(
            f"{run}: no phase that trained a GrowCLIP on pairs is finished; finish one, or use --throughput"
        )
    return speed


def speed_so_far(run: Path, steps: GrowthSteps) -> Speed | None:
    """FLOP/s per rank in the last finished `train` phase of a GrowCLIP; None if there is none.

    The phase's time includes start-up and evaluation, so a longer phase gives a better measurement.

    Args:
        run: the folder of the measured run.
        steps: the growth steps of the planned run, by which the FLOPs of a pair are counted.

    Raises:
        InputError: the folder holds no run.
    """
    folder = RunFolder(run)
    if not folder.config_file.exists():
        raise InputError(f"{run} holds no run (no config.yaml in it); name the --output-dir of one that has trained")
    config = load_config(folder.config_file)
    usable = [
        (record, record.training)
        for record in folder.records()
        if record.phase is Phase.TRAIN and record.kind == "growclip" and record.training is not None
    ]
    usable = [(record, training) for record, training in usable if training.pairs_seen]
    if not usable:
        return None
    record, training = usable[-1]
    sizes = config.model.sizes(steps.sizes.vocab_size)
    flops = steps.of_sizes(sizes).pair_flops(record.architecture, record.kind)
    rate = training.pairs_seen / record.device_seconds
    pairs = f"{rate:,.1f} pairs/s per rank of {record.architecture} on {training.device}"
    return Speed(rate * flops, f"measured: {run}, growth step {record.step}, {pairs}")
