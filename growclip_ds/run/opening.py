"""Opening a run's folder to begin a run, or to resume it: whatever is not this run's is refused and stays as it is."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from pathlib import Path
from shlex import quote

from growclip_ds.config.config import Config
from growclip_ds.distributed import on_every_rank, on_main
from growclip_ds.errors import InputError
from growclip_ds.files import write_text
from growclip_ds.growth.phases import Phase
from growclip_ds.run.changes import forbidden_changes
from growclip_ds.run.folder import RunFolder
from growclip_ds.yaml_files import read_yaml

SHARED_WITHIN = 60.0  # seconds for a file to appear on all machines: NFS clients may cache a folder that long
_SECTIONS = {"model", "growth", "data", "training"}  # that the config.yaml of every run has


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
        is_of_run = isinstance(there, dict) and there.keys() >= _SECTIONS
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
