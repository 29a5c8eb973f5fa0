"""A run's growing data: an ordered list of subsets, of which growth step t trains on the first t."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from braceexpand import UnbalancedBracesError, braceexpand
from pydantic import ConfigDict, TypeAdapter, ValidationError

from growclip_ds.data.order import held_out_mask
from growclip_ds.data.shards import ShardIndex, concatenate, index_shards
from growclip_ds.distributed import on_main
from growclip_ds.errors import InputError
from growclip_ds.files import write_text
from growclip_ds.yaml_files import read_yaml, to_yaml


@dataclass(frozen=True)
class Subset:
    """One subset of a run's data.

    Attributes:
        name: what it is called, once in a run.
        shards: a folder of `.tar` files, a glob (`cc12m/*.tar`) or a brace pattern (`cc12m/{00000..00310}.tar`).
        samples: usable pairs in its shards, held-out ones included; None before it was first opened.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    shards: str
    samples: int | None = None


class OpenSubsets(NamedTuple):
    """The data of a growth step: its subsets, in their order.

    Attributes:
        subsets: as asked for, with the samples counted.
        train: the samples to train on.
        held_out: the samples kept for choosing architectures, of every subset as many.
    """

    subsets: tuple[Subset, ...]
    train: ShardIndex
    held_out: ShardIndex

    def first(self, count: int) -> OpenSubsets:
        """The data of growth step `count`: the first subsets alone."""
        subsets = self.subsets[:count]
        held_out = len(self.held_out) // len(self.subsets) * count
        train = sum(subset.samples or 0 for subset in subsets) - held_out
        return OpenSubsets(subsets, _first_samples(self.train, train), _first_samples(self.held_out, held_out))


def open_subsets(subsets: Sequence[Subset], base: Path | str = ".", held_out: int = 0, seed: int = 0) -> OpenSubsets:
    """Finds and indexes the shards of subsets; the ranks share the work.

    Args:
        base: the folder that relative patterns start from.
        held_out: pairs of each subset to keep out of training.
        seed: decides, with the subset's name, which ones.

    Raises:
        InputError: on every rank, if a pattern matches nothing, a shard cannot be read, a subset has no usable sample
            or other ones than it once had, or a name or a shard comes twice.
    """
    patterns = on_main(lambda: _find_all(subsets, base))
    opened, train, kept = [], [], []
    for subset, shards in zip(subsets, patterns, strict=True):
        try:
            index = index_shards(shards)
        except InputError as error:
            raise InputError(f"data subset '{subset.name}': {error}") from error
        if subset.samples not in (None, len(index)):
            raise InputError(
                f"data subset '{subset.name}' had {subset.samples} samples when the run began and has {len(index)} "
                f"now; bring back the shards as they were ({subset.shards}), or begin a new run"
            )
        mask = torch.from_numpy(held_out_mask(len(index), held_out, seed, subset.name))
        opened.append(replace(subset, samples=len(index)))
        train.append(index.only(~mask))
        kept.append(index.only(mask))
    return OpenSubsets(tuple(opened), concatenate(train), concatenate(kept))


def _first_samples(index: ShardIndex, count: int) -> ShardIndex:
    return index.only(torch.arange(len(index)) < count)


def find_shards(pattern: str, base: Path | str = ".") -> list[str]:
    """The absolute paths of the shards that a pattern means, in the order of the pattern, a glob's matches sorted.

    Raises:
        InputError: the folder is missing, no tar matches, or a shard named by the pattern does not exist.
    """
    try:
        parts = [str(Path(part).expanduser()) for part in braceexpand(pattern)]
    except UnbalancedBracesError as error:
        raise InputError(f"the shard pattern '{pattern}' has unbalanced braces; correct it") from error
    base = Path(base).absolute()
    found: list[Path] = []
    for part in parts:
        path = base / part
        if glob.has_magic(part):
            matches = glob.glob(part, root_dir=base)  # noqa: PTH207 (the part may be an absolute path)
            found += sorted(base / match for match in matches if match.endswith(".tar"))
        elif path.is_dir():
            found += sorted(path.glob("*.tar"))
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"there is no {path} ('shards: {pattern}'); correct the path, or put the shards there")
    if not found:
        raise InputError(f"no .tar file matches '{pattern}' in {base}; correct the pattern, or put the shards there")
    return [str(path) for path in found]


def write_subsets(subsets: Sequence[Subset], path: Path | str) -> None:
    """Writes `data.yaml`, whole or not at all."""
    write_text(Path(path), to_yaml([asdict(subset) for subset in subsets]))


def read_subsets(path: Path | str) -> list[Subset]:
    """Reads `data.yaml`.

    Raises:
        InputError: the file is missing, or is no list of {name, shards, samples}.
    """
    try:
        return TypeAdapter(list[Subset]).validate_python(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path} must list the run's data subsets, each with name, shards and samples; bring it back as the run "
            f"wrote it (entry {where}: {first['msg']})"
        ) from error


def continue_subsets(recorded: Sequence[Subset], configured: Sequence[Subset]) -> list[Subset]:
    """A run's subsets, as recorded in its `data.yaml`, with those that its config has appended since.

    Those that were never opened, their samples not counted, may still change.

    Raises:
        InputError: the config changes, moves or leaves out a recorded subset.
    """
    recorded = [subset for subset in recorded if subset.samples is not None]
    for place, old in enumerate(recorded):
        new = configured[place] if place < len(configured) else None
        if new is None or (new.name, new.shards) != (old.name, old.shards):
            now = f"'{new.name}' ({new.shards})" if new else "missing"
            raise InputError(
                f"data subset {place + 1} of this run is '{old.name}' ({old.shards}), but in the config it is {now}; "
                "subsets can only be appended: restore the list, or begin a new run with another output folder"
            )
    return [*recorded, *configured[len(recorded) :]]


def _find_all(subsets: Sequence[Subset], base: Path | str) -> list[list[str]]:
    for name, count in Counter(subset.name for subset in subsets).items():
        if count > 1:
            raise InputError(f"two data subsets are called '{name}'; give each its own name")
    owners: dict[Path, str] = {}
    found = []
    for subset in subsets:
        try:
            shards = find_shards(subset.shards, base)
        except InputError as error:
            raise InputError(f"data subset '{subset.name}': {error}") from error
        for shard in shards:
            owner = owners.setdefault(Path(shard).resolve(), subset.name)
            if owner != subset.name or len(set(shards)) < len(shards):
                raise InputError(
                    f"shard {shard} is in data subset '{owner}' and again in '{subset.name}'; "
                    "each may be in one subset only, once"
                )
        found.append(shards)
    return found
