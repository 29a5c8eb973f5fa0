"""Inspects whatever a folder holds: a checkpoint, a run, or a model in Hugging Face format."""

from __future__ import annotations

from pathlib import Path

from growclip_ds.checkpoint.exported import is_exported
from growclip_ds.checkpoint.writing import INDEX
from growclip_ds.errors import InputError
from growclip_ds.evaluation.subject import is_hugging_face, nothing_there
from growclip_ds.inspection.models import Inspected, inspect_checkpoint, inspect_clip, inspect_exported
from growclip_ds.inspection.runs import InspectedRun, inspect_run
from growclip_ds.run.folder import RunFolder


def inspect(path: Path, verify: bool = False) -> Inspected | InspectedRun:
    """Inspects a folder.

    Args:
        path: the folder of a checkpoint, a phase of a run, a run, or a model in Hugging Face format.
        verify: whether to read every tensor and compare its checksum.

    Raises:
        InputError: the folder is none of these, or it is damaged.
    """
    for folder in (path, path / "weights"):
        if (folder / INDEX).exists():
            return inspect_checkpoint(folder, verify)
    run = RunFolder(path)
    if run.config_file.exists():
        return inspect_run(run, verify)
    if is_exported(path):
        return inspect_exported(path, verify)
    if is_hugging_face(path):
        return inspect_clip(path, verify)
    raise InputError(f"{path} {nothing_there(path)}")
