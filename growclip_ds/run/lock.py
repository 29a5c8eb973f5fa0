"""A lock against training a run twice at a time: the second start would remove and rename what the first is writing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from growclip_ds.distributed import on_main
from growclip_ds.errors import InputError

WAIT = 30.0  # seconds in which the ranks of a job that is started again may still come to their end
WAIT_FOR_SERVER = 300.0  # and in which a file server may still keep the lock of a node that such a job has lost
PERIOD = 0.5  # seconds from one try to the next
NAME = "train.lock"
_UNKNOWN = "by whom is not known"
_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # file systems that have none


class RunLock:
    """The lock on a run's folder, held by rank 0 until it is closed or the process ends, however it ends.

    The folder is made if need be. Where the file system has no locks, nothing is locked.

    Args:
        folder: the run's folder.

    Raises:
        InputError: on every rank, if another start of the run holds it, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._file: IO[str] | None = None
        on_main(self._take)

    def close(self) -> None:
        """Not collective: does nothing where it is not held."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take(self) -> None:
        end = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            while (file := self._try()) is None:
                holder = self._path.read_text(encoding="utf-8").strip() or _UNKNOWN
                if end is None:
                    wait = WAIT_FOR_SERVER if _is_of_this_job(holder) else WAIT
                    end = time.monotonic() + wait
                    print(f"{self._path.parent} is in use ({holder}); waiting {wait:.0f} s for its end", flush=True)
                if time.monotonic() > end:
                    raise InputError(
                        f"{self._path.parent}: this run is already being trained ({holder}); end that one "
                        f"first, or use another --output-dir. If its machine is gone, remove {self._path}"
                    )
                time.sleep(PERIOD)
        except OSError as error:
            raise InputError(
                f"the output folder {self._path.parent} cannot be written: {error.strerror}; see that you may write "
                "there, or take another --output-dir"
            ) from None
        self._file = file
        with contextlib.suppress(OSError):  # a disk that is full: it is only told
            file.truncate(0)
            file.write(f"{socket.gethostname()}, pid {os.getpid()}{_slurm_job()}\n")
            file.flush()
            os.fsync(file.fileno())

    def _try(self) -> IO[str] | None:
        """The file, locked; None if another process has locked it. Opened anew each time: it may have been removed."""
        file = self._path.open("a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _WITHOUT_LOCKS:
                return file
            file.close()
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return None
            raise
        return file


def _slurm_job() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    return f", Slurm job {job}" if job else ""


def _is_of_this_job(holder: str) -> bool:
    """Whether it is an earlier start of the Slurm job that this process belongs to."""
    return bool(_slurm_job()) and holder.endswith(_slurm_job()) and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def running(folder: Path) -> str | None:
    """Which process runs a run at this moment, in words; None if none does, or the file system's locks do not tell."""
    path = folder / NAME
    try:
        with path.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # and closed: a start that comes just now tries again
    except BlockingIOError:
        with contextlib.suppress(OSError):
            return path.read_text(encoding="utf-8").strip() or _UNKNOWN
        return _UNKNOWN
    except OSError:
        pass
    return None
