"""A lock against training a run twice at once: the second start would remove or rename files that the first writes."""

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

WAIT = 30.0  # seconds to wait for a previous start's ranks to end
WAIT_FOR_SERVER = 300.0  # the same if this job was requeued: a file server may hold the lock of a lost node this long
PERIOD = 0.5  # seconds between attempts
NAME = "train.lock"
_UNKNOWN = "holder unknown"
_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # errors of file systems without locks


class RunLock:
    """The lock on a run's folder, held by rank 0 until it is closed or the process ends, even if it is killed.

    Creates the folder if it does not exist. On a file system without locks, nothing is locked.

    Args:
        folder: the run's folder.

    Raises:
        InputError: on every rank, if another process still holds the lock, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._file: IO[str] | None = None
        on_main(self._take)

    def close(self) -> None:
        """Releases the lock; does nothing on a rank that does not hold it. Not collective."""
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
                    print(f"{self._path.parent} is in use ({holder}); waiting up to {wait:.0f} s for it", flush=True)
                if time.monotonic() > end:
                    raise InputError(
                        f"{self._path.parent}: this run is already being trained ({holder}); end that process "
                        f"first, or use another --output-dir. If its machine is gone, remove {self._path}"
                    )
                time.sleep(PERIOD)
        except OSError as error:
            raise InputError(
                f"the output folder {self._path.parent} cannot be written: {error.strerror}; check your "
                "permissions there, or use another --output-dir"
            ) from None
        self._file = file
        with contextlib.suppress(OSError):  # such as a full disk: the name of the holder is only informative
            file.truncate(0)
            file.write(f"{socket.gethostname()}, pid {os.getpid()}{_slurm_job()}\n")
            file.flush()
            os.fsync(file.fileno())

    def _try(self) -> IO[str] | None:
        """The locked file; None if another process holds the lock. Opens it each time, as it may have been replaced."""
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
    """Whether the holder is an earlier start of this process's Slurm job, which has been requeued."""
    return bool(_slurm_job()) and holder.endswith(_slurm_job()) and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def running(folder: Path) -> str | None:
    """Describes the process that is training a run; None if there is none, or if the file system has no locks."""
    path = folder / NAME
    try:
        with path.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released at once; a run that starts meanwhile retries
    except BlockingIOError:
        with contextlib.suppress(OSError):
            return path.read_text(encoding="utf-8").strip() or _UNKNOWN
        return _UNKNOWN
    except OSError:
        pass
    return None
