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
    """Everything that all phases of a run share.

    Attributes:
        config: the run's configuration.
        deepspeed: the DeepSpeed settings that engines are built with.
        folder: the run's folder.
        inputs: the data, the tokenizer and the evaluation sets.
        monitor: logs progress and metrics.
        stop: whether this rank was asked to stop.
        watch: the watchdog over all ranks.
    """

    config: Config
    deepspeed: ResolvedDeepSpeed
    folder: RunFolder
    inputs: RunInputs
    monitor: Monitor
    stop: StopRequest
    watch: Watchdog
