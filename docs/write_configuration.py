"""Writes docs/configuration.md, every setting of a run, from the types that a configuration is read into."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from growclip_ds.config.config import Config
from growclip_ds.config.errors import expected, section_of
from growclip_ds.run.changes import may_change

PAGE = Path(__file__).parent / "configuration.md"
HEAD = """\
# Configuration

Written by `make docs` from the types in `growclip_ds/config/config.py`; a test says when it is not current.

A run is described by a YAML file (`train.py --config`), with sections as below. What it leaves out has the default,
which is the paper's where the paper has one. Behind the command, `section.key=value` overrides a setting, and a number
picks an item of a list: `training.global_batch_size=4096 data.subsets.0.shards=/data/a`. Unknown keys and values of a
wrong type are refused, with a line for each. The whole is kept in the run's `config.yaml`.

Settings with a • may change under a run that goes on: they bear on speed, memory and reports, not on the weights. To
change another, take a new folder. Subsets may be appended, not changed.

Precision, ZeRO and offloading are the DeepSpeed file's, `ds_configs/`.
"""


class Row(NamedTuple):
    """A setting: its key, and the cells behind it."""

    key: str
    kind: str
    default: str
    meaning: str


def page() -> str:
    """The page, in Markdown."""
    alone = {name: field for name, field in Config.model_fields.items() if section_of(field) is None}
    parts = [HEAD, "## The run\n", _table(row for name, field in alone.items() for row in _rows(name, field))]
    for name, field in Config.model_fields.items():
        if section := section_of(field):
            rows = [row for key, inner in section.model_fields.items() for row in _rows(f"{name}.{key}", inner)]
            parts += [f"## {name}\n", f"{inspect.cleandoc(section.__doc__ or '')}\n", _table(rows)]
    return "\n".join(parts)


def _rows(key: str, field: FieldInfo) -> Iterator[Row]:
    """A field's row, and those of the section that it holds."""
    section = section_of(field)
    yield Row(key, _kind(field, section), _default(field, section), field.description or "")
    for name, inner in section.model_fields.items() if section else ():
        yield from _rows(f"{key}.{'0.' if _is_list(field) else ''}{name}", inner)


def _kind(field: FieldInfo, section: type[BaseModel] | None) -> str:
    if section is None or isinstance(field.json_schema_extra, dict):
        return expected(field)
    return "a section, or null" if field.default is None else "a section"


def _is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


def _default(field: FieldInfo, section: type[BaseModel] | None) -> str:
    """As YAML has it."""
    if field.is_required():
        return "required"
    if field.default_factory is not None or isinstance(field.default, BaseModel) or (section and field.default):
        return ""  # that of each key in it
    return f"`{json.dumps(field.default)}`"


def _table(rows: Any) -> str:
    lines = ["| key | | value | default | meaning |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = [f"`{row.key}`", "•" if may_change(row.key) else "", row.kind, row.default, row.meaning]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
