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
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from growclip_ds.architecture import Architecture
from growclip_ds.config.config import Config
from growclip_ds.config.deepspeed import REDUCTION
from growclip_ds.distributed import on_every_rank, on_main
from growclip_ds.errors import InputError
from growclip_ds.files import write_json, write_text
from growclip_ds.growth.phases import Phase
from growclip_ds.run.changes import differences, forbidden_changes
from growclip_ds.run.records import PhaseRecord, read_record
from growclip_ds.yaml_files import read_yaml

SHARED_WITHIN = 60.0  # seconds for a file to appear on all machines: NFS clients may cache a folder that long


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


def open_run(output_dir: str | Path, config: Config) -> RunFolder:
    """Creates a run's folder, or opens that of a run to resume. Collective.

    A run that has saved no weights, no checkpoint (not even a damaged one) and no record of a phase may be started over
    with another configuration.

    Raises:
        InputError: on every rank, if the folder holds another run or files of other programs in place of a run's,
            cannot be read or written, or is not shared by all machines.
    """
    folder = RunFolder(Path(output_dir))

    def open_on_main() -> None:
        begun = _has_begun(folder.path)
        known = folder.config_file.exists()
        if begun and not known:
            raise InputError(
                f"{folder.path} holds growth steps, but no config.yaml to say whose; use another --output-dir"
            )
        if begun:
            _require_same_run(folder, config)
            return
        _require_no_other_files(folder)
        try:
            if known:
                _remove_leftovers(folder)
            folder.path.mkdir(parents=True, exist_ok=True)
            write_text(folder.config_file, config.to_yaml())
        except OSError as error:
            raise InputError(f"the output folder {folder.path} cannot be written: {error.strerror}") from None

    on_main(open_on_main)
    on_every_rank(lambda: _require_shared(folder.config_file))
    return folder


def _has_begun(path: Path) -> bool:
    """Whether a run has saved anything. Not by `glob`, which takes errors for empty folders: the files of a run
    that has saved nothing are removed.
    """
    try:
        phases = [phase for step in _inside(path) if step.name.startswith("step_") for phase in _inside(step)]
        kept = {found.name for phase in phases for found in _inside(phase)}
        checkpoints = [found.name for phase in phases for found in _inside(phase / "checkpoints")]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check its disk") from error
    return bool(kept & {"weights", "phase.json"}) or any(
        name.startswith(("iteration_", "damaged_")) for name in checkpoints
    )


def _require_shared(file: Path) -> None:
    """Checks that this rank sees a file that rank 0 has written."""
    end = time.monotonic() + SHARED_WITHIN
    while not file.exists():
        if time.monotonic() > end:
            raise InputError(
                f"{socket.gethostname()} does not see {file.absolute()}: put --output-dir on a file system that all "
                "machines share"
            )
        time.sleep(1)


def _require_no_other_files(folder: RunFolder) -> None:
    """Refuses a folder in which a run would overwrite or use files that no run has written."""
    if not folder.config_file.exists():  # which a run writes first
        others = [file for file in (folder.data_file, folder.deepspeed_file, folder.tokenizer) if file.exists()]
    else:
        there = read_yaml(folder.config_file)
        is_of_run = isinstance(there, dict) and there.keys() >= Config.model_fields.keys()  # defaults written out
        others = [] if is_of_run else [folder.config_file]
    if others:
        raise InputError(f"{others[0]} was not written by a run; use another --output-dir, or move it")


def _remove_leftovers(folder: RunFolder) -> None:
    """Removes what a run has left that has saved nothing: its tokenizer may not fit the new configuration."""
    if folder.data_file.exists():  # written before the tokenizer: without it, a tokenizer is not the run's
        shutil.rmtree(folder.tokenizer, ignore_errors=True)
    folder.data_file.unlink(missing_ok=True)
    folder.deepspeed_file.unlink(missing_ok=True)
    for step in folder.path.glob("step_*"):
        if step.name.removeprefix("step_").isdecimal():
            for phase in Phase:
                shutil.rmtree(step / phase, ignore_errors=True)
            with contextlib.suppress(OSError):  # it holds something else
                step.rmdir()


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _require_same_run(folder: RunFolder, config: Config) -> None:
    there = read_yaml(folder.config_file)
    if not isinstance(there, dict):
        raise InputError(f"{folder.config_file} is damaged; use another --output-dir")
    if changes := forbidden_changes(there, config):
        differing = "; ".join(f"{key}: {before} there, {now} now" for key, before, now in changes)
        raise InputError(
            f"{folder.path} holds a run with another configuration ({differing}); use another --output-dir, or "
            f"continue the run as it began (--config {quote(str(folder.config_file))})"
        )
