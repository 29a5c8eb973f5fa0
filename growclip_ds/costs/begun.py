"""Progress of a run of which the rest is planned, from its folder or from the exported model that it starts from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
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
from growclip_ds.run.records import PhaseRecord, data_subsets, record_so_far


class BegunRun:
    """What a plan reads from the folder of a run.

    Args:
        path: the run's folder.

    Raises:
        InputError: the folder is not a run, or a phase.json is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.folder = existing_run(path)
        self._records = list(self.folder.records())

    def config(self, overrides: Sequence[str]) -> Config:
        """The run's configuration, with overrides of settings that may change during a run.

        Raises:
            InputError: an override is of another setting, or a value is invalid.
        """
        for key in (text.partition("=")[0] for text in overrides):
            if not may_change(key):
                raise InputError(
                    f"{key} cannot change during a run ({self.folder.path}); leave it out, or plan a new run with "
                    f"--config {self.folder.config_file} instead of --run"
                )
        return load_config(self.folder.config_file, overrides)

    def subsets(self, config: Config) -> list[Subset]:
        """The subsets of the configuration, with the numbers of samples that the run has counted.

        Raises:
            InputError: `data.yaml` is damaged, or the configuration changes subsets that have been used.
        """
        return data_subsets(config, self.folder.data_file)[1]

    def vocabulary(self, config: Config) -> int | None:
        """Vocabulary size of the run's tokenizer; None if it has none yet.

        Raises:
            InputError: the tokenizer cannot be read.
        """
        folder = self.folder.tokenizer
        return load_tokenizer(folder, config.model.context_length).vocab_size if folder.exists() else None

    def deepspeed(self, default: DeepSpeedFile) -> DeepSpeedFile:
        """A DeepSpeed file in the run's precision; ZeRO stage and buckets, which no run stores, are the default's.

        Raises:
            InputError: the settings that the run has stored cannot be read.
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

    def caption_tokens(self, config: Config) -> float | None:
        """Mean tokens of the captions trained on so far, start and end of text included; None if there are none.

        Raises:
            InputError: the checkpoints of a phase cannot be read.
        """
        records = [*self._records, *records_so_far(self.folder, config)]
        trainings = [record.training for record in records if record.training is not None]
        pairs = sum(training.pairs_seen for training in trainings)
        return sum(training.text_tokens_seen for training in trainings) / pairs if pairs else None

    def progress(self, config: Config) -> Begun:
        """The progress of the run, which may be running meanwhile.

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
        for phase, kept in _unfinished(self.folder, config, self._records):
            if "resume" in kept.description:
                iterations[phase] = int(kept.description["resume"]["iteration"])
            else:  # the final weights of the phase, not yet evaluated
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


def records_so_far(folder: RunFolder, config: Config) -> list[PhaseRecord]:
    """Records of the phases that have begun and are not finished, from the checkpoints that they would resume from.

    Raises:
        InputError: a checkpoint cannot be read.
    """
    kept = [checkpoint for _, checkpoint in _unfinished(folder, config, list(folder.records()))]
    return [record for record in map(record_so_far, kept) if record is not None]


def _unfinished(
    folder: RunFolder, config: Config, finished: Sequence[PhaseRecord]
) -> Iterator[tuple[Phase, Checkpoint]]:
    """What is kept of the unfinished phases of the growth step that a run is in."""
    step = 1 + sum(record.phase is Phase.TRAIN for record in finished)
    over = {record.phase for record in finished if record.step == step}
    for phase in phase_epochs(config, step):
        if phase not in over and (kept := _kept(folder, step, phase)) is not None:
            yield phase, kept


def _kept(folder: RunFolder, step: int, phase: Phase) -> Checkpoint | None:
    """The weights of an unfinished phase, or the newest intact checkpoint, from which it would resume; None without."""
    if folder.weights(step, phase).exists():
        return Checkpoint(folder.weights(step, phase))
    for path in sorted(folder.checkpoints(step, phase).glob("iteration_*"), reverse=True):
        with contextlib.suppress(DamagedError):  # or removed meanwhile by the run itself
            return Checkpoint(path)
    return None


def begun_by_model(start: str, sizes: ModelSizes) -> Begun:
    """The progress of a run that starts from an exported model.

    Args:
        start: the folder of the exported model.
        sizes: sizes of the run's models.

    Raises:
        InputError: the folder is not an exported GrowCLIP, or the model's sizes differ.
    """
    model = ExportedModel(start)
    if model.sizes != sizes:
        raise InputError(f"model.start, {start}, has {model.sizes}, but the run has {sizes}; set those of the model")
    steps = [Architecture(**step["architecture"]) for step in model.growth] or [model.architecture]
    return Begun(f"model.start ({start})", len(steps), tuple(steps))
