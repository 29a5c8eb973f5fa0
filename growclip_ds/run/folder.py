"""A run on disk.

    config.yaml               the run's configuration, defaults written out
    data.yaml                 its data subsets
    faults/                   unusable samples as JSON lines: found by the index, and by each rank
    tokenizer/
    tensorboard/
    bad_iterations/           iterations without an update: the first non-finite tensor, and the samples
    deepspeed.json            the parts of the DeepSpeed file that affect the weights
    train.lock                locked while the run trains; names the process
    step_1/train/             weights/, written after training, and phase.json, written last: the record of the phase;
                              until then checkpoints/ to resume from
    step_2/finetune/          phase 1, the supernet
    step_2/selection/         phase 2, the supernet trained by subnets; phase.json lists the candidates
    step_2/search/            in place of these two, for NAS
    step_2/train/             phase 3, the selected model; the only phase of a fixed model
    step_3/…

A phase is finished once its phase.json exists. A restarted run skips finished phases, repeats only the evaluation of a
phase that has its weights, and resumes a phase from its newest checkpoint otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growclip_ds.architecture import Architecture
from growclip_ds.config.config import Config
from growclip_ds.config.deepspeed import REDUCTION
from growclip_ds.distributed import on_main
from growclip_ds.errors import InputError
from growclip_ds.files import write_json, write_text
from growclip_ds.growth.phases import Phase
from growclip_ds.run.changes import differences
from growclip_ds.run.records import PhaseRecord, read_record


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, and which of its phases are finished.

    Methods that read or write are collective unless they say otherwise.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def data_file(self) -> Path:
        return self.path / "data.yaml"

    @property
    def deepspeed_file(self) -> Path:
        return self.path / "deepspeed.json"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    def faults(self, source: str) -> Path:
        """File that lists the unusable samples found by a source: `index`, or a rank (`rank_0`)."""
        return self.path / "faults" / f"{source}.jsonl"

    def bad_iterations(self, step: int, phase: Phase) -> Path:
        """Folder of the reports on a phase's iterations without an update."""
        return self.path / "bad_iterations" / f"step_{step}_{phase}"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def phase(self, step: int, phase: Phase) -> Path:
        return self.path / f"step_{step}" / phase

    def record_file(self, step: int, phase: Phase) -> Path:
        return self.phase(step, phase) / "phase.json"

    def weights(self, step: int, phase: Phase) -> Path:
        """Folder of a phase's final weights, which may not exist yet."""
        return self.phase(step, phase) / "weights"

    def checkpoints(self, step: int, phase: Phase) -> Path:
        """Folder of a phase's checkpoints during its training."""
        return self.phase(step, phase) / "checkpoints"

    def remove_checkpoints(self, step: int, phase: Phase) -> None:
        """Removes a phase's checkpoints, which are not needed once its final weights exist."""
        on_main(lambda: shutil.rmtree(self.checkpoints(step, phase), ignore_errors=True))

    def require_there(self) -> None:
        """Checks that the folder has not been removed during the run.

        Raises:
            InputError: on every rank, if it is gone.
        """
        on_main(self._require_there)

    @contextlib.contextmanager
    def errors_explained(self) -> Iterator[None]:
        """A context that turns errors in writing to the folder into errors that the user can fix. Not collective.

        Raises:
            InputError: in place of an OSError, if the folder is gone or its disk is full.
        """
        try:
            yield
        except OSError as error:
            self._require_there()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(f"{self.path} cannot be written: {error}; make room, then start the run again") from error

    def _require_there(self) -> None:
        if not self.config_file.exists():
            raise InputError(
                f"{self.config_file} was removed during the run, so nothing can be saved any more: restore the folder, "
                "or start a new run"
            )

    def is_finished(self, step: int, phase: Phase) -> bool:
        return on_main(self.record_file(step, phase).exists)

    def first_unfinished(self, places: Iterable[tuple[int, Phase]]) -> tuple[int, Phase] | None:
        """The first of these (growth step, phase) pairs that is not finished; None if all are."""
        return next((place for place in places if not self.is_finished(*place)), None)

    def require_step_before(self, step: int) -> None:
        """Checks that the growth step before this one is finished.

        Raises:
            InputError: on every rank, if it is not.
        """
        if step > 1 and not self.is_finished(step - 1, Phase.TRAIN):
            raise InputError(
                f"growth step {step} needs step {step - 1}, which is not finished in {self.path}: "
                f"run --growth-step {step - 1} first"
            )

    def is_trained(self, step: int, phase: Phase) -> bool:
        """Whether a phase has its final weights, whether or not it is finished."""
        return on_main(self.weights(step, phase).exists)

    def finish(self, record: PhaseRecord) -> None:
        """Marks the phase of a record as finished; its weights must exist."""
        step, phase = record.step, record.phase
        self.remove_checkpoints(step, phase)  # again: the run may have been interrupted before it removed them
        on_main(lambda: write_json(self.record_file(step, phase), record.to_json()))

    def record(self, step: int, phase: Phase) -> PhaseRecord:
        """The record of a finished phase.

        Raises:
            InputError: on every rank, if the phase is not finished, or its phase.json is damaged.
        """
        return on_main(lambda: read_record(self.record_file(step, phase), step, phase))

    def records(self) -> Iterator[PhaseRecord]:
        """Yields the records of all finished phases, in the order in which they ran. Not collective, for reports.

        Raises:
            InputError: a phase.json is damaged.
        """
        for step in itertools.count(1):
            finished = [phase for phase in Phase if self.record_file(step, phase).exists()]
            for phase in finished:
                yield read_record(self.record_file(step, phase), step, phase)
            if Phase.TRAIN not in finished:
                return

    def write_config(self, config: Config) -> None:
        """Stores the configuration that the run continues with."""
        on_main(lambda: write_text(self.config_file, config.to_yaml()))

    def keep_numerics(self, numerics: dict[str, Any]) -> list[str]:
        """Stores the DeepSpeed settings that affect the weights, and compares them with those stored before.

        Returns:
            A line per change, to show to the user. Ranks, ZeRO stages and offloading may change without mention.
        """
        before = on_main(self._read_numerics)
        on_main(lambda: write_json(self.deepspeed_file, numerics))
        if before is None:
            return []
        before = {key: numerics[key] for key in REDUCTION if key in numerics} | before  # older versions lack them
        return [f"{key}: {old} before, {new} now" for key, old, new in differences(before, numerics)]

    def _read_numerics(self) -> dict[str, Any] | None:
        try:
            return json.loads(self.deepspeed_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"{self.deepspeed_file} cannot be read ({error}); remove it") from None

    def iterations_before(self, step: int, phase: Phase) -> int:
        """Number of iterations of the run before a phase, which is where its curves start."""
        order = list(Phase)

        def is_before(record: PhaseRecord) -> bool:
            return (record.step, order.index(record.phase)) < (step, order.index(phase))

        return on_main(lambda: sum(record.iterations for record in self.records() if is_before(record)))

    def selected_architecture(self, step: int, phase: Phase = Phase.SELECTION) -> Architecture:
        """The candidate that a phase of a growth step has selected.

        Raises:
            InputError: on every rank, if the phase's record cannot be read, or has no candidates.
        """
        candidates = self.record(step, phase).candidates
        if not candidates:
            raise InputError(f"{self.record_file(step, phase)} is damaged: no 'candidates'; copy it again")
        return candidates[0].architecture


def existing_run(path: Path) -> RunFolder:
    """The folder of an existing run. Not collective.

    Raises:
        InputError: there is no run in `path`.
    """
    folder = RunFolder(path)
    if not path.is_dir():
        raise InputError(f"there is no folder {path}; name the --output-dir of a run")
    if not folder.config_file.exists():
        raise InputError(f"{path} is not a run: it has no {folder.config_file.name}; name the --output-dir of one")
    return folder
