"""The speed of a GPU as a run had it."""

from __future__ import annotations

from pathlib import Path

from growclip_ds.architecture import Architecture
from growclip_ds.config.config import Config, load_config
from growclip_ds.costs.speed import Speed
from growclip_ds.costs.steps import GrowthSteps
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import Phase
from growclip_ds.run.folder import RunFolder
from growclip_ds.run.records import device_seconds


def measured_speed(run: Path, steps: GrowthSteps) -> Speed:
    """As `speed_so_far`, of a run that has one.

    Raises:
        InputError: the folder holds no run, or none of its phases says what is needed.
    """
    speed = speed_so_far(run, steps)
    if speed is None:
        raise InputError(
            f"{run}: no finished phase that trained a GrowCLIP says how many pairs and ranks it had; finish one, or "
            "give --throughput"
        )
    return speed


def speed_so_far(run: Path, steps: GrowthSteps) -> Speed | None:
    """Operations a second and rank of the last finished phase that trained a GrowCLIP as a whole; None without one.

    Start and evaluation are part of the phase's time, so the longer it was, the better.

    Args:
        run: its folder.
        steps: which count a pair's operations: of the run that is planned.

    Raises:
        InputError: the folder holds no run.
    """
    folder = RunFolder(run)
    if not folder.config_file.exists():
        raise InputError(f"{run} holds no run (no config.yaml in it); name the --output-dir of one that has trained")
    config: Config = load_config(folder.config_file)
    usable = [
        (step, record)
        for step, phase, record in folder.records()
        if phase is Phase.TRAIN and {"ranks", "pairs_seen", "model"} <= record.keys() and record["pairs_seen"]
    ]
    usable = [(step, record) for step, record in usable if record["model"]["kind"] == "growclip"]
    if not usable:
        return None
    step, record = usable[-1]
    architecture = Architecture(**record["model"]["architecture"])
    sizes = config.model.sizes(steps.sizes.vocab_size)
    flops = steps.of_sizes(sizes).pair_flops(architecture)
    rate = record["pairs_seen"] / device_seconds(record)
    source = f"measured: {run}, growth step {step}, {rate:,.1f} pairs/s a rank of {architecture}"
    if "device" in record:
        source += f" on {record['device']}"
    return Speed(rate * flops, source)
