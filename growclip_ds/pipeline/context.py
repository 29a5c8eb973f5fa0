"""Context shared by all phases of a run."""

from __future__ import annotations

from dataclasses import dataclass

from growclip_ds.config.config import Config
from growclip_ds.config.deepspeed import ResolvedDeepSpeed
from growclip_ds.distributed.watchdog import Watchdog
from growclip_ds.monitor import Monitor
from growclip_ds.pipeline.prepare import RunInputs
from growclip_ds.run.folder import RunFolder
from growclip_ds.signals import StopRequest


@dataclass(frozen=True)
class RunContext:
    """What all phases of a run have in common.

    Attributes:
        config: its configuration.
        deepspeed: how to build engines.
        folder: where it is on disk.
        inputs: the data, the tokenizer and the evaluation sets.
        monitor: told what happens.
        stop: whether this rank was asked to stop.
        watch: over the ranks.
    """

    config: Config
    deepspeed: ResolvedDeepSpeed
    folder: RunFolder
    inputs: RunInputs
    monitor: Monitor
    stop: StopRequest
    watch: Watchdog
