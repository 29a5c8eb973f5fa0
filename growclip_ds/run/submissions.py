"""Record of the growth steps of a run that a watch has submitted to Slurm. Does not import torch."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from growclip_ds.errors import InputError
from growclip_ds.files import write_json

# Run in the project's folder, the same way as in slurm/grow_run.sh.
_COMMON = "slurm/common.sh"
_FIND_JOB = f'set -uo pipefail; source {_COMMON} && leave_allocation && open_run_dir && job_of_step "$1"'


class Submissions:
    """The growth steps of a run that a watch has submitted, stored on disk so that a restart submits none twice.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "slurm"
        self.file = self.folder / "watch.json"
        self._added: dict[int, str] = {}  # also holds steps that could not be stored, such as on a full disk

    def read(self) -> dict[int, str]:
        """The output of each submission, by growth step.

        Raises:
            InputError: the file is damaged.
        """
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            return {int(step): said for step, said in found.items()} | self._added
        except FileNotFoundError:
            return dict(self._added)
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{self.file} cannot be read ({error}); remove it if no step is submitted") from None

    def add(self, step: int, said: str) -> None:
        """Stores that a growth step has been submitted.

        Args:
            step: the growth step.
            said: the output of the submission.

        Raises:
            InputError: the file cannot be written; this object still remembers the submission.
        """
        self._added[step] = said
        try:
            write_json(self.file, self.read())
        except OSError as error:
            raise InputError(f"{self.file} cannot be written: {error.strerror}; submitted: {said}") from None

    def has_job(self, step: int) -> bool | None:
        """Whether a growth step has a pending or running job, whoever submitted it; None if Slurm does not answer.

        Raises:
            InputError: the working directory is not the project's folder.
        """
        if not Path(_COMMON).exists():
            raise InputError(f"there is no {_COMMON} here; run it from the project's folder")
        words = ["bash", "-c", _FIND_JOB, "watch", str(step)]
        variables = {"SCRIPT": "watch", "RUN_DIR": str(self.folder.parent)}
        try:
            answer = subprocess.run(words, env=os.environ | variables, capture_output=True, text=True, check=False)
        except OSError:
            return None
        return None if answer.returncode else bool(answer.stdout.strip())

    def log(self, step: int) -> Path:
        """The newest log file of a growth step's jobs; the folder of all logs if there is none."""
        return max(self.folder.glob(f"*-step{step}-*.log"), key=lambda file: file.stat().st_mtime, default=self.folder)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """A context that only one process can be in at a time; its lock is released even if the process is killed.

        Raises:
            InputError: another process is watching the run, or the folder cannot be written or locked.
        """
        lock = self.folder / "watch.lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = lock.open("w")
        except OSError as error:
            raise InputError(f"{lock} cannot be written: {error.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.folder.parent} is being watched already ({lock} is held)") from None
            except OSError as error:  # Lustre without locks: ENOSYS
                raise InputError(
                    f"{lock} cannot be locked ({error.strerror}): mount the file system with locks (Lustre: -o flock), "
                    "or use a run folder on another file system"
                ) from None
            yield
