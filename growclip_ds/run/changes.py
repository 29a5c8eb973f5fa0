"""Which settings of a run may change when it is resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from growclip_ds.config.config import Config
from growclip_ds.config.sections import DataSection, TokenizerSection

# These settings affect speed, memory and reports, not the weights; `health.spike_*`, which let a run pass a loss spike,
# are the exception.
MAY_CHANGE = (
    "growth.steps",
    "data.subsets",  # checked against data.yaml, which records the used ones
    "data.staged",
    "data.workers",
    "data.max_broken_share",
    "training.micro_batch_size",
    "training.activation_checkpointing",
    "selection.batch_size",
    "evaluation",
    "checkpoint",
    "health",
    "monitoring",
)

_NOT_SET = object()


def may_change(key: str) -> bool:
    """Whether a setting, by its dotted key, may change when a run is resumed."""
    return any(f"{key}.".startswith(f"{other}.") for other in MAY_CHANGE)


def forbidden_changes(there: dict[str, Any], config: Config) -> list[tuple[str, str, str]]:
    """The changes to a run's configuration that a resumed run must not make.

    Args:
        there: the run's configuration as stored in its folder; missing (newer) settings count as their defaults.
        config: the configuration to resume the run with.

    Returns:
        For each change: the dotted key, the stored value and the new value, as JSON.
    """
    data = DataSection.model_construct(tokenizer=TokenizerSection.model_construct())
    defaults = Config.model_construct(data=data).model_dump(mode="json")
    found = differences(_completed(there, defaults), config.model_dump(mode="json"))
    return [change for change in found if not may_change(change[0])]


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Yields the dotted key, old value and new value (as JSON) of each difference between two nested values."""
    if isinstance(old, list) and isinstance(new, list) and old and isinstance(old[0], dict):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            path = f"{key}.{name}" if key else str(name)
            yield from differences(old.get(name, _NOT_SET), new.get(name, _NOT_SET), path)
    elif old != new:
        before, after = ("not set" if value is _NOT_SET else json.dumps(value) for value in (old, new))
        yield key, before, after


def _completed(there: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    found = there | {key: default for key, default in defaults.items() if key not in there}
    for key, value in found.items():
        if isinstance(value, dict) and isinstance(defaults.get(key), dict):
            found[key] = _completed(value, defaults[key])
    return found
