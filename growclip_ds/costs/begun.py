"""The progress of a run whose rest is to be planned, from its folder or from the exported model that it starts with."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.checkpoint.checkpoint import Checkpoint, DamagedError
from growclip_ds.checkpoint.exported import ExportedModel
from growclip_ds.config.config import Config, load_config
from growclip_ds.config.deepspeed import DeepSpeedFile, load_deepspeed_config
from growclip_ds.costs.steps import Begun
from growclip_ds.data.subsets import Subset
from growclip_ds.data.tokens import load_tokenizer
from growclip_ds.errors import InputError
from growclip_ds.growth.phases import Phase, phase_epochs
from growclip_ds.run.changes import may_change
from growclip_ds.run.folder import RunFolder, existing_run
from growclip_ds.run.records import data_subsets, record_so_far


class BegunRun:
    """A run's folder, as far as a plan goes by it.

    Args:
        path: the run's folder.

    Raises:
        InputError: there is no run, or a phase.json is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.folder = existing_run(path)
        self._records = list(self.folder.records())

    def config(self, overrides: Sequence[str]) -> Config:
        """The run's, with settings changed that may change in its course.

        Raises:
            InputError: others are to be changed, or a value is not right.
        """
        for key in (text.partition("=")[0] for text in overrides):
            if not may_change(key):
                raise InputError(
                    f"{key} cannot change during a run ({self.folder.path}); leave it out, or plan a new run: "
                    f"--config {self.folder.config_file} in place of --run"
                )
        return load_config(self.folder.config_file, overrides)

    def subsets(self, config: Config) -> list[Subset]:
        """The configuration's, with the samples that the run has counted.

        Raises:
            InputError: `data.yaml` is damaged, or the configuration changes subsets that have been used.
        """
        return data_subsets(config, self.folder.data_file)[1]

    def vocabulary(self, config: Config) -> int | None:
        """Tokens of the run's tokenizer; None where it has none yet.

        Raises:
            InputError: it cannot be read.
        """
        folder = self.folder.tokenizer
        return load_tokenizer(folder, config.model.context_length).vocab_size if folder.exists() else None

    def deepspeed(self, default: DeepSpeedFile) -> DeepSpeedFile:
        """A DeepSpeed file in the run's precision. Its ZeRO stage and buckets, which no run keeps, are the default's.

        Raises:
            InputError: what the run has kept of its file cannot be read.
        """
        file = self.folder.deepspeed_file
        if not file.exists():
            return default
        kept = load_deepspeed_config(file).values
        values: dict[str, Any] = {**default.values}
        values |= {key: kept[key] for key in ("gradient_clipping", "data_types") if key in kept}
        if kept.get("precision") in ("bf16", "fp16"):
            values[kept["precision"]] = {"enabled": True}
        return DeepSpeedFile(file, values)

    def progress(self, config: Config) -> Begun:
        """How far it is; also while it runs.

        Raises:
            InputError: the weights or checkpoints of a phase cannot be read.
        """
        known = [record.architecture for record in self._records if record.phase is Phase.TRAIN]
        step = len(known) + 1
        trainings = [record.training for record in self._records]
        finished = [record for record in self._records if record.step == step]
        over = {record.phase for record in finished}
        chosen = [record.candidates[0].architecture for record in finished if record.candidates]
        iterations = {}
        for phase in phase_epochs(config, step):
            if phase in over or (kept := _kept(self.folder, step, phase)) is None:
                continue
            if "resume" in kept.description:
                iterations[phase] = int(kept.description["resume"]["iteration"])
            else:  # its final weights, which are still to be evaluated
                over.add(phase)
            if phase is Phase.TRAIN:
                chosen = [kept.architecture]
            if (record := record_so_far(kept)) is not None:
                trainings.append(record.training)
        return Begun(
            name=str(self.folder.path),
            finished=len(known),
            architectures=(*known, *chosen[-1:]),
            over=frozenset(over),
            iterations=iterations,
            ranks=next((training.ranks for training in reversed(trainings) if training is not None), None),
        )


def _kept(folder: RunFolder, step: int, phase: Phase) -> Checkpoint | None:
    """The weights of an unfinished phase, or the newest whole checkpoint that it would go on from."""
    if folder.weights(step, phase).exists():
        return Checkpoint(folder.weights(step, phase))
    for path in sorted(folder.checkpoints(step, phase).glob("iteration_*"), reverse=True):
        with contextlib.suppress(DamagedError):  # or removed meanwhile, by a run that goes on
            return Checkpoint(path)
    return None


def begun_by_model(start: str, sizes: ModelSizes) -> Begun:
    """What is behind a run that begins with an exported model.

    Args:
        start: the exported folder.
        sizes: sizes of the run's models.

    Raises:
        InputError: it is no exported GrowCLIP, or its sizes are others.
    """
    model = ExportedModel(start)
    if model.sizes != sizes:
        raise InputError(f"model.start, {start}, has {model.sizes}, but the run has {sizes}; set the model's")
    steps = [Architecture(**step["architecture"]) for step in model.growth] or [model.architecture]
    return Begun(f"model.start ({start})", len(steps), tuple(steps))
