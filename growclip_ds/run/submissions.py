"""Which growth steps of a run have been submitted, by one process at a time. Imports no torch."""

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

# In the project's folder, as slurm/grow_run.sh does it.
_COMMON = "slurm/common.sh"
_FIND_JOB = f'set -uo pipefail; source {_COMMON} && leave_allocation && open_run_dir && job_of_step "$1"'


class Submissions:
    """Which growth steps of a run a watch has submitted, on disk: none is submitted twice, whatever comes between.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "slurm"
        self.file = self.folder / "watch.json"
        self._added: dict[int, str] = {}  # counts also where the disk is full

    def read(self) -> dict[int, str]:
        """By growth step, what was printed when it was submitted.

        Raises:
            InputError: the file is damaged.
        """
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            return {int(step): said for step, said in found.items()} | self._added
        except FileNotFoundError:
            return dict(self._added)
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{self.file} cannot be read ({error}); remove it if nothing is submitted") from None

    def add(self, step: int, said: str) -> None:
        """Keeps that a growth step has been submitted.

        Raises:
            InputError: the file cannot be written; that there is a submission is known until the process ends.
        """
        self._added[step] = said
        try:
            write_json(self.file, self.read())
        except OSError as error:
            raise InputError(f"{self.file} cannot be written: {error.strerror}; submitted was {said}") from None

    def has_job(self, step: int) -> bool | None:
        """Whether a growth step has a job that waits or runs, whoever submitted it; None where Slurm does not say.

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
        """The newest output of a growth step's jobs; the folder of all jobs' if there is none."""
        return max(self.folder.glob(f"*-step{step}-*.log"), key=lambda file: file.stat().st_mtime, default=self.folder)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """For one process at a time; the lock ends with the process, however it ends.

        Raises:
            InputError: another one is watching the run, or the folder cannot be written or locked.
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
                    "or take a run's folder on another"
                ) from None
            yield
