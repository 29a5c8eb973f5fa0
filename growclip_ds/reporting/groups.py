"""Groups of runs that differ only in their seed, and labels of the groups."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from growclip_ds.architecture import Architecture
from growclip_ds.config.config import AblationSection, Config
from growclip_ds.monitor.words import SYMBOLS
from growclip_ds.reporting.runs import ReportedRun
from growclip_ds.run.changes import may_change

# The names in Table 5 of the parts of a growth step that can be ablated, by switch in the configuration.
SWITCHES = {"pim_supernet": "PIM@1", "finetuning": "ST", "selection": "GAS", "pim_selected": "PIM@3"}
DIMENSIONS = tuple(field.name for field in fields(Architecture))
METHODS = {"growclip": "GrowCLIP", "tfs": "TFS", "twp": "TWP", "sap": "SAP", "msclip": "MS-CLIP", "nas": "NAS"}
MOST_SETTINGS = 4  # in a label; if there are more, it names a run of the group instead


@dataclass(frozen=True)
class Group:
    """Runs of one method with the same settings.

    Attributes:
        method: the method's name in the configuration.
        label: the method's title, and the settings in which the group differs from others of the method.
        runs: the runs, at least one, in the order given.
        settings: all settings that affect the weights except the seed, by dotted key.
    """

    method: str
    label: str
    runs: tuple[ReportedRun, ...]
    settings: Mapping[str, Any]

    @property
    def is_ablated(self) -> bool:
        return self.runs[0].config.ablation != AblationSection()


def group_runs(runs: Sequence[ReportedRun]) -> list[Group]:
    """Groups runs in the order of `METHODS`; within a method, groups with the fewest settings of their own come first.

    A label always names what is ablated. It names other settings if groups of the method differ in them, except
    defaults.
    """
    members: dict[tuple[str, ...], list[ReportedRun]] = {}
    for run in runs:
        key = run.config.method, *(f"{name}={value!r}" for name, value in _settings(run.config).items())
        members.setdefault(key, []).append(run)
    first = [alike[0].config for alike in members.values()]
    usual = _usual_settings()
    groups = []
    for alike, config in zip(members.values(), first, strict=True):
        settings = _settings(config)
        others = [_settings(other) for other in first if other.method == config.method]
        own = [
            name
            for name, value in settings.items()
            if (name.startswith("ablation.") or any(other[name] != value for other in others))
            and (name not in usual or usual[name] != value)
        ]
        label = _label(config.method, {name: settings[name] for name in own}, alike[0].name)
        groups.append((len(own), Group(config.method, label, tuple(alike), settings)))
    groups.sort(key=lambda counted: (list(METHODS).index(counted[1].method), counted[0]))
    return [group for _, group in groups]


def symbol_of(dimension: str) -> str:
    """The paper's symbol for one of the six dimensions: `b^I` for `image_blocks`."""
    return dict(zip(DIMENSIONS, SYMBOLS, strict=True))[dimension]


def repeated_seeds(groups: Iterable[Group]) -> Iterator[str]:
    """Warnings about runs of a group that share a seed and so are not independent."""
    for group in groups:
        by_seed: dict[int, list[str]] = {}
        for run in group.runs:
            by_seed.setdefault(run.config.seed, []).append(run.name)
        for seed, names in by_seed.items():
            if len(names) > 1:
                yield (
                    f"The runs {' and '.join(names)} have the same configuration and seed, {seed}: they count as "
                    f"{len(names)} runs, but say little about the variation between runs."
                )


def _settings(config: Config) -> dict[str, Any]:
    """The settings that affect the weights, except method and seed, by dotted key."""
    sections = config.model_dump(mode="json")
    if config.selection.dataset is not None:  # its name does not matter
        sections["selection"]["dataset"] = str(config.selection.dataset)
    values = dict(_flatten(sections))
    return {key: value for key, value in values.items() if key not in ("seed", "method") and not may_change(key)}


def _flatten(values: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; an architecture is one value."""
    for name, value in values.items():
        key = f"{section}{name}"
        if isinstance(value, Mapping) and tuple(value) == DIMENSIONS:
            yield key, Architecture(**value)
        elif isinstance(value, Mapping):
            yield from _flatten(value, f"{key}.")
        else:
            yield key, value


def _usual_settings() -> Mapping[str, Any]:
    """The default of each setting that has one."""
    data = {"subsets": [{"name": "none", "shards": "none"}], "tokenizer": {"name_or_path": "none"}}
    return _settings(Config.model_validate({"data": data}))


def _label(method: str, own: Mapping[str, Any], run: str) -> str:
    """The title of a method, and the settings particular to a group: `GrowCLIP without PIM@3, growth.beta=0.5`."""
    label, rest = METHODS[method], dict(own)
    if left_out := [name for switch, name in SWITCHES.items() if rest.pop(f"ablation.{switch}", True) is False]:
        label += f" without {' and '.join(left_out)}"
    if dimension := rest.pop("ablation.grow_only", None):
        label += f" growing {symbol_of(dimension)} alone"
    if len(rest) > MOST_SETTINGS:
        return f"{label}, configured as {run}"
    shown = (
        f"{name}={value if isinstance(value, str | Architecture) else json.dumps(value)}"
        for name, value in rest.items()
    )
    return ", ".join([label, *shown])
