"""YAML with version 1.2's plain scalars, no duplicate keys and no Python objects.

PyYAML follows version 1.1, where `1e-3` is a string, `off` is false and `010` is eight, and it silently keeps the last
of two equal keys.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from growclip_ds.errors import InputError

_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_PLAIN_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", rf"[-+]?{_DIGITS}", list("-+0123456789")),
    ("float", rf"[-+]?(?:\.{_DIGITS}|{_DIGITS}(?:\.(?:{_DIGITS})?)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (what PyYAML expects)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be plain text, not a list or a section", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        try:
            return int(node.value)  # PyYAML reads a leading zero as octal
        except ValueError:  # tagged !!int by hand, or too long for Python to convert
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value[:40]!r} is not an integer", node.start_mark
            ) from None


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in _PLAIN_SCALARS:
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse_yaml(text: str, source: str | Path) -> Any:
    """The value of a YAML text.

    Args:
        text: the YAML.
        source: where the text comes from, for messages.

    Raises:
        InputError: the text is not valid YAML; the message names the source, the line and the column.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{source}{place} is not valid YAML: {getattr(error, 'problem', None) or error}") from None


def read_yaml(path: str | Path) -> Any:
    """The value of a YAML file.

    Raises:
        InputError: the file does not exist, cannot be read, or is not valid YAML in UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        place = "" if Path(path).is_absolute() else f" in {Path.cwd()}"
        raise InputError(f"there is no file {path}{place}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return parse_yaml(text, path)


def to_yaml(value: Any) -> str:
    """The value as YAML that `parse_yaml` reads back unchanged; keys keep their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
