"""A run on disk.

    config.yaml               the run's configuration, defaults written out
    data.yaml                 its data subsets
    tokenizer/
    tensorboard/
    step_1/train/             weights/, written when trained, and, written last, phase.json: what the phase did
    step_2/finetune/          phase 1, the supernet
    step_2/selection/         phase 2, the supernet trained by subnets; phase.json lists the candidates
    step_2/train/             phase 3, the selected model
    step_3/…

A phase is finished once its phase.json is there. Starting a run again skips the finished ones; of one that has its
weights already, only the evaluation is done again.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from growclip_ds.architecture import Architecture
from growclip_ds.config import Config
from growclip_ds.distributed import on_main
from growclip_ds.errors import InputError
from growclip_ds.files import write_json, write_text
from growclip_ds.yaml_files import read_yaml

# What a run that goes on may have changed: it bears on speed, memory and reports, not on the weights.
MAY_CHANGE = (
    "growth.steps",
    "data.subsets",  # data.yaml knows which ones have been used
    "data.workers",
    "training.micro_batch_size",
    "training.activation_checkpointing",
    "selection.batch_size",
    "evaluation",
    "monitoring",
)


class Phase(StrEnum):
    """The phases of a growth step (Section 3.4); the first step only trains."""

    FINETUNE = "finetune"
    SELECTION = "selection"
    TRAIN = "train"

    @classmethod
    def of_step(cls, step: int) -> tuple[Phase, ...]:
        """The phases of a growth step, in order."""
        return (cls.TRAIN,) if step == 1 else (cls.FINETUNE, cls.SELECTION, cls.TRAIN)


@dataclass(frozen=True)
class RunFolder:
    """Where a run's files are, and which of its phases are finished.

    Methods that read or write are collective but where they say that they are not.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def data_file(self) -> Path:
        return self.path / "data.yaml"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def phase(self, step: int, phase: Phase) -> Path:
        return self.path / f"step_{step}" / phase

    def weights(self, step: int, phase: Phase) -> Path:
        """Where a phase's final weights are, or will be."""
        return self.phase(step, phase) / "weights"

    def is_finished(self, step: int, phase: Phase) -> bool:
        return on_main((self.phase(step, phase) / "phase.json").exists)

    def first_unfinished(self, steps: Iterable[int]) -> tuple[int, Phase] | None:
        """The first phase of these growth steps that is still to be run, if any."""
        phases = ((step, phase) for step in steps for phase in Phase.of_step(step))
        return next((place for place in phases if not self.is_finished(*place)), None)

    def require_step_before(self, step: int) -> None:
        """Checks that a growth step can be run.

        Raises:
            InputError: on every rank, if the growth step before it is not finished.
        """
        if step > 1 and not self.is_finished(step - 1, Phase.TRAIN):
            raise InputError(
                f"growth step {step} needs step {step - 1}, which is not finished in {self.path}: "
                f"run --growth-step {step - 1} first"
            )

    def is_trained(self, step: int, phase: Phase) -> bool:
        """Whether a phase has its final weights, finished or not."""
        return on_main(self.weights(step, phase).exists)

    def finish(self, step: int, phase: Phase, record: dict[str, Any]) -> None:
        """Marks a phase finished, its weights being there.

        Args:
            record: what the phase did, as JSON.
        """
        on_main(lambda: write_json(self.phase(step, phase) / "phase.json", record))

    def record(self, step: int, phase: Phase) -> dict[str, Any]:
        """What a finished phase did.

        Raises:
            InputError: on every rank, if it is not finished, or its phase.json is damaged.
        """
        return on_main(lambda: self._read_record(step, phase))

    def _read_record(self, step: int, phase: Phase) -> dict[str, Any]:
        file = self.phase(step, phase) / "phase.json"
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"the {phase} phase of growth step {step} is not finished: there is no {file}") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be read ({error}); remove {file.parent} to run the phase again") from None

    def records(self) -> Iterator[tuple[int, Phase, dict[str, Any]]]:
        """What the finished phases did, in the order in which they were run. Not collective: for reports.

        Raises:
            InputError: a phase.json is damaged.
        """
        for step in itertools.count(1):
            for phase in Phase.of_step(step):
                if not (self.phase(step, phase) / "phase.json").exists():
                    return
                yield step, phase, self._read_record(step, phase)

    def write_config(self, config: Config) -> None:
        """Keeps the configuration that the run goes on with."""
        on_main(lambda: write_text(self.config_file, config.to_yaml()))

    def iterations_before(self, step: int, phase: Phase) -> int:
        """Iterations of the run before a phase began: where its curves start."""
        before = [(s, p) for s in range(1, step) for p in Phase.of_step(s)]
        phases = Phase.of_step(step)
        before += [(step, p) for p in phases[: phases.index(phase)]]
        return sum(self.record(*place)["iterations"] for place in before)

    def selected_architecture(self, step: int) -> Architecture:
        """The candidate that the selection phase of a growth step found best."""
        return Architecture(**self.record(step, Phase.SELECTION)["candidates"][0]["architecture"])


def open_run(output_dir: str | Path, config: Config) -> RunFolder:
    """Creates a run's folder, or opens that of a run to go on with. Collective.

    A run that has not trained any phase to its end may begin anew with another configuration.

    Raises:
        InputError: on every rank, if the folder holds another run, or cannot be written.
    """
    folder = RunFolder(Path(output_dir))

    def open_on_main() -> None:
        begun = any(folder.path.glob("step_*/*/weights"))
        known = folder.config_file.exists()
        if begun and not known:
            raise InputError(
                f"{folder.path} holds growth steps, but no config.yaml to tell whose; take another --output-dir"
            )
        if begun:
            _check_same_run(folder, config)
            return
        try:
            if known:  # its tokenizer may not be what this configuration asks for
                folder.data_file.unlink(missing_ok=True)
                for leftover in (folder.tokenizer, *folder.path.glob("step_*")):
                    shutil.rmtree(leftover, ignore_errors=True)
            folder.path.mkdir(parents=True, exist_ok=True)
            write_text(folder.config_file, config.to_yaml())
        except OSError as error:
            raise InputError(f"the output folder {folder.path} cannot be written: {error.strerror}") from None

    on_main(open_on_main)
    return folder


def _check_same_run(folder: RunFolder, config: Config) -> None:
    old, new = read_yaml(folder.config_file), config.model_dump(mode="json")
    if not isinstance(old, dict):
        raise InputError(f"{folder.config_file} is damaged; take another --output-dir")
    lines = [
        f"  {key}: {before} there, {after} now"
        for key, before, after in _differences(old, new)
        if not any(f"{key}.".startswith(f"{other}.") for other in MAY_CHANGE)
    ]
    if lines:
        raise InputError(
            "\n".join(
                [
                    f"{folder.path} holds a run with another configuration:",
                    *lines,
                    f"take another --output-dir, or go on with the run as it began (--config {folder.config_file})",
                ]
            )
        )


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """The dotted keys in which two nested values differ, with what they are."""
    if isinstance(old, list) and isinstance(new, list) and old and isinstance(old[0], dict):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            path = f"{key}.{name}" if key else str(name)
            yield from _differences(old.get(name, _NOT_SET), new.get(name, _NOT_SET), path)
    elif old != new:
        before, after = ("not set" if value is _NOT_SET else json.dumps(value) for value in (old, new))
        yield key, before, after


_NOT_SET = object()
