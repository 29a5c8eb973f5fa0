"""Configuration errors, one line each: the source, the key, its value, and what is expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from growclip_ds.errors import InputError

_NOUNS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    str: "a non-empty string",
    bool: "true or false",
    tuple[int, ...]: "a list of integers",
}
COMMAND_LINE = "the command line"
_BOUNDS = (
    ("ge", "at least"),
    ("gt", "greater than"),
    ("le", "at most"),
    ("lt", "below"),
    ("multiple_of", "a multiple of"),
)


def override(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets `section.key` in nested values; validation reports unknown keys.

    Raises:
        InputError: the key leads through a value that has no keys, or to a list item that does not exist.
    """
    *parents, last = key.split(".")
    place: Any = values
    for depth, part in enumerate(parents):
        path = ".".join(parents[: depth + 1])
        place = place[_index(place, part, path, key)] if isinstance(place, list) else place.setdefault(part, {})
        if not isinstance(place, dict | list):
            raise InputError(f"the command line sets {key}, but {path} is {place!r}, which has no keys")
    if isinstance(place, list):
        place[_index(place, last, key, key)] = value
    else:
        place[last] = value


def _index(items: list[Any], part: str, path: str, key: str) -> int:
    if not items:
        raise InputError(f"the command line sets {key}, but {path.rpartition('.')[0]} is an empty list")
    if not part.isdecimal() or int(part) >= len(items):
        raise InputError(f"the command line sets {key}, but {path} is not among the list's items 0 to {len(items) - 1}")
    return int(part)


def explain(
    error: ValidationError, root: type[BaseModel], values: dict[str, Any], file: str, origins: Sequence[tuple[str, str]]
) -> str:
    """The message for a failed validation, one line per problem.

    Args:
        error: the validation's error.
        root: the section that the values were validated as.
        values: the values that were validated.
        file: the file that the values come from.
        origins: (dotted key, source) for values that come from elsewhere; of several for a key, the last one counts.
    """
    lines = []
    problems = error.errors()
    for problem in problems:
        loc = problem["loc"]
        if any(len(other["loc"]) > len(loc) and other["loc"][: len(loc)] == loc for other in problems):
            continue  # the problem inside is more specific
        if problem["type"] == "default_factory_not_called":
            continue  # the problem with the values that the default depends on is more specific
        key = ".".join(map(str, loc))
        source = _origin(key, file, origins)
        if problem["type"] in ("extra_forbidden", "invalid_key"):
            lines.append(f"{source}: there is no key {key}; {_nearest(root, loc)}")
        elif problem["type"] == "missing":
            lines.append(f"{source}: {key} is missing; expected {expected(_field(root, loc))}")
        elif problem["type"] == "value_error":
            lines.append(f"{source}: {f'{key}: ' if key else ''}{problem['ctx']['error']}")
        else:
            field, at = _field(root, loc), _whole(root, loc)
            lines.append(f"{source}: {'.'.join(map(str, at))} is {_lookup(values, at)!r}; expected {expected(field)}")
    return "\n".join(dict.fromkeys(lines))


def _origin(key: str, file: str, origins: Sequence[tuple[str, str]]) -> str:
    """The source of a key's value; for an empty key, the possible sources of values that contradict each other."""
    if not key:
        return f"{file} and {COMMAND_LINE}" if COMMAND_LINE in dict(origins).values() else file
    return next((origin for other, origin in reversed(origins) if _overlap(key, other)), file)


def _overlap(key: str, other: str) -> bool:
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation allows, by itself, in a list or as an alternative to null."""
    annotation = getattr(annotation, "section", annotation)  # for another type that is read from a section
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, itself or in a list; None if it holds none."""
    return next((m.section for m in field.metadata if hasattr(m, "section")), None) or _section(field.annotation)


def _walk(root: type[BaseModel], loc: tuple[int | str, ...]) -> Iterator[tuple[int, FieldInfo, type[BaseModel] | None]]:
    """The known fields along a location, each with its depth and the section that it holds."""
    section: type[BaseModel] | None = root
    for depth, part in enumerate(loc):
        if isinstance(part, int):
            continue
        if section is None or part not in section.model_fields:
            return
        field = section.model_fields[part]
        section = section_of(field)
        yield depth, field, section


def _field(root: type[BaseModel], loc: tuple[int | str, ...]) -> FieldInfo:
    return list(_walk(root, loc))[-1][1]


def _whole(root: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The location, shortened to its last field: a list of plain values is reported as a whole."""
    depth, _, section = list(_walk(root, loc))[-1]
    return loc if section else loc[: depth + 1]


def _nearest(root: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    walked = list(_walk(root, loc[:-1]))
    siblings = list((walked[-1][2] if walked else root).model_fields)  # type: ignore[union-attr]
    parents = [str(part) for part in loc[:-1]]
    name = str(loc[-1])
    if close := difflib.get_close_matches(name, siblings, n=1):
        return f"did you mean {'.'.join([*parents, close[0]])}?"
    everywhere = dict(_all_keys(root))
    if close := difflib.get_close_matches(name, everywhere, n=1, cutoff=0.75):
        return f"did you mean {everywhere[close[0]]}?"
    where = ".".join(parents) or "the configuration"
    return f"{where} has {', '.join(siblings)}"


def _all_keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, field in section.model_fields.items():
        yield name, prefix + name
        if inner := section_of(field):
            yield from _all_keys(inner, f"{prefix}{name}.")


def _lookup(values: Any, loc: tuple[int | str, ...]) -> Any:
    for part in loc:
        if isinstance(values, str):  # a string that stands for a section
            return values
        values = values[part]
    return values


def expected(field: FieldInfo) -> str:
    """Describes the valid values of a field."""
    if isinstance(field.json_schema_extra, dict):
        return str(field.json_schema_extra["expected"])
    if section := section_of(field):
        return f"a section with {', '.join(section.model_fields)}"
    kinds = get_args(field.annotation)
    nullable = type(None) in kinds
    annotation = kinds[0] if nullable else field.annotation
    literals = get_origin(annotation) is Literal
    noun = f"one of {', '.join(get_args(annotation))}" if literals else _NOUNS[annotation]
    bounds = [
        f"{words} {getattr(limit, name)}" for limit in field.metadata for name, words in _BOUNDS if hasattr(limit, name)
    ]
    return ", ".join([noun, *([" and ".join(bounds)] if bounds else []), *(["or null"] if nullable else [])])
