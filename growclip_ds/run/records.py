"""What is read in more than one place of the records that a run leaves: of its phases, and of its data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growclip_ds.config.config import Config
from growclip_ds.data.subsets import Subset, continue_subsets, read_subsets


def device_seconds(record: Mapping[str, Any]) -> float | None:
    """Of a phase's record: seconds of all its ranks together; None where it is not known how many there were.

    Older records tell of the last ranks only; there may have been others before.
    """
    if record.get("device_seconds") is None and record.get("ranks") is not None:
        return record["ranks"] * record["seconds"]
    return record.get("device_seconds")


def data_subsets(config: Config, data_file: Path) -> tuple[list[Subset], list[Subset]]:
    """The subsets that a run has recorded, and all of them: what is recorded, then what is configured besides.

    Raises:
        InputError: `data.yaml` is damaged, or the configuration changes what is recorded.
    """
    recorded = read_subsets(data_file) if data_file.exists() else []
    return recorded, continue_subsets(recorded, [Subset(**dict(subset)) for subset in config.data.subsets])
