"""Lists of evaluation sets in YAML files, such as `configs/eval/paper.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from growclip_ds.config.errors import COMMAND_LINE, explain
from growclip_ds.config.sections import EvaluationSets, Section, SetSection
from growclip_ds.data.remote import is_remote
from growclip_ds.errors import InputError
from growclip_ds.yaml_files import read_yaml


class EvaluationList(Section):
    """Evaluation sets that are evaluated together."""

    root: str = Field(
        default=".",
        min_length=1,
        description="location of the sets: a folder, a URL, or pipe:command with {} for the path",
    )
    sets: EvaluationSets = Field(
        min_length=1,
        description="the sets; relative paths are under root",
        json_schema_extra={"expected": "a list with at least one set, each with a name and a path"},
    )

    def location(self, one: SetSection) -> str:
        """The location of a set, for `load_evaluation_set`."""
        if is_remote(one.path) or Path(one.path).is_absolute():
            return one.path
        if self.root.startswith("pipe:"):
            return self.root.replace("{}", f"{one.path}/{{}}")
        return f"{self.root.rstrip('/')}/{one.path}" if is_remote(self.root) else str(Path(self.root) / one.path)


def read_list(path: str | Path, root: str | None = None, names: Sequence[str] = ()) -> EvaluationList:
    """Reads a list of evaluation sets.

    Args:
        path: the YAML file.
        root: replaces the file's `root`, unless it is None.
        names: names of the sets to use; all if empty.

    Raises:
        InputError: the file cannot be read, a key or value is invalid, or it has no set of one of the names.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold `root: …` and `sets: …`, but holds {values!r}")
    if root is not None:
        values["root"] = root
    try:
        listed = EvaluationList.model_validate(values)
    except ValidationError as error:
        origins = [] if root is None else [("root", COMMAND_LINE)]
        raise InputError(explain(error, EvaluationList, values, str(path), origins)) from None
    known = {one.name: one for one in listed.sets}
    for name in names:
        if name not in known:
            raise InputError(f"{path} has no set {name!r}; it has {', '.join(known)}")
    return listed.model_copy(update={"sets": tuple(known[name] for name in names)}) if names else listed
