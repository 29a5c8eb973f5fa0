"""The growing data of a run: an ordered list of subsets; growth step t trains on the first t."""

from __future__ import annotations

import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]
from pydantic import ConfigDict, TypeAdapter, ValidationError

from growclip_ds.data.faults import Cause, Fault
from growclip_ds.data.index_file import IndexedShard, is_beside
from growclip_ds.data.order import held_out_mask
from growclip_ds.data.remote import RemoteShards, is_remote
from growclip_ds.data.remote_stream import count_samples
from growclip_ds.data.shards import Progress, ShardIndex, collect, for_each_file, open_shards, require_samples
from growclip_ds.data.staging import copy_or_own
from growclip_ds.distributed import on_main
from growclip_ds.errors import InputError
from growclip_ds.files import write_text
from growclip_ds.yaml_files import read_yaml, to_yaml


@dataclass(frozen=True)
class Subset:
    """One subset of a run's data.

    Attributes:
        name: its name, unique in a run.
        shards: a folder of `.tar` files, a glob (`cc12m/*.tar`, or `cc12m/**/*.tar` for folders at any depth) or a
            brace pattern (`cc12m/{00000..00310}.tar`); for shards to stream, a brace pattern of URLs (`https://…`,
            `s3://…`, `pipe:command`).
        samples: number of usable pairs in its shards, including held-out ones; None: not counted yet.
        shard_samples: number of samples in each streamed shard; None: local shards, or not counted yet.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    shards: str
    samples: int | None = None
    shard_samples: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class OpenSubsets:
    """The data of a growth step.

    Attributes:
        subsets: the subsets in order, with their samples counted.
        train: the samples to train on.
        held_out: the samples held out for selecting architectures, the same number from every subset.
        shards: the indexed local shards of each subset.
    """

    subsets: tuple[Subset, ...]
    train: ShardIndex | RemoteShards
    held_out: ShardIndex
    shards: tuple[Sequence[IndexedShard], ...] = ()

    def first(self, count: int) -> OpenSubsets:
        """The data of growth step `count`, its first `count` subsets, sharing their index with this object."""
        subsets = self.subsets[:count]
        held_out = len(self.held_out) // len(self.subsets) * count
        train = sum(subset.samples or 0 for subset in subsets) - held_out
        return OpenSubsets(subsets, self.train.first(train), self.held_out.first(held_out), self.shards[:count])

    @property
    def left_out(self) -> Counter[Cause]:
        """Number of unusable samples in local shards, by cause."""
        return sum((shard.left_out for shard in itertools.chain.from_iterable(self.shards)), Counter())

    def faults(self) -> Iterator[Fault]:
        """Yields the unusable samples of local shards; one entry with the path stands for a damaged shard."""
        for shard in itertools.chain.from_iterable(self.shards):
            yield from shard.faults()

    def indexes_elsewhere(self) -> int:
        """Number of local shards whose index is in the user's cache, or could not be stored."""
        return sum(not is_beside(shard) for shard in itertools.chain.from_iterable(self.shards))


def open_subsets(
    subsets: Sequence[Subset],
    held_out: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
    staged: Path | str | None = None,
) -> OpenSubsets:
    """Finds and indexes the shards of subsets, or counts those to stream. Collective: the ranks share the work.

    Args:
        subsets: the subsets of the growth step, in order.
        held_out: number of pairs of each subset to hold out of training.
        seed: with the subset's name, determines which pairs are held out.
        progress: called with the numbers of this rank's tars done and to do.
        staged: folder of local copies to read in place of the shards; see `growclip_ds.data.staging`.

    Raises:
        InputError: a pattern matches nothing, a subset has no usable sample or no longer the number it had, a name or a
            shard occurs twice, even as a copy, only some subsets are streamed, or pairs are to be held out of streamed
            ones; raised on every rank.
    """
    counted, groups = _count(subsets, progress, staged)
    if any(is_remote(subset.shards) for subset in counted):
        if held_out:
            raise InputError(
                f"{held_out} pairs are to be held out of every data subset, but streamed shards allow no random "
                "access; set selection.dataset, a labelled set to compare candidates on"
            )
        samples = itertools.chain.from_iterable(subset.shard_samples or () for subset in counted)
        shards = RemoteShards(tuple(itertools.chain.from_iterable(groups)), tuple(samples))
        return OpenSubsets(counted, shards, collect([]))
    indexes = tuple(itertools.chain.from_iterable(groups))
    kept = torch.from_numpy(
        np.concatenate([held_out_mask(subset.samples or 0, held_out, seed, subset.name) for subset in counted])
    )
    return OpenSubsets(counted, collect(indexes, ~kept), collect(indexes, kept), tuple(groups))


def count_subsets(subsets: Sequence[Subset], progress: Progress | None = None) -> tuple[Subset, ...]:
    """Counts the samples of subsets; for arguments and errors see `open_subsets`."""
    return _count(subsets, progress)[0]


def _count(
    subsets: Sequence[Subset], progress: Progress | None, staged: Path | str | None = None
) -> tuple[tuple[Subset, ...], list[list[Any]]]:
    """The subsets with their samples counted, and for each its indexed shards, or the URLs of those to stream."""
    patterns = on_main(lambda: _find_all(subsets))
    if any(is_remote(subset.shards) for subset in subsets):
        return _count_remote(subsets, patterns, progress), patterns
    paths = list(itertools.chain.from_iterable(patterns))
    if staged is not None:
        paths = for_each_file(partial(copy_or_own, folder=staged), paths)
    indexes = iter(open_shards(paths, progress))
    groups = [list(itertools.islice(indexes, len(shards))) for shards in patterns]
    counted = []
    for subset, shards in zip(subsets, groups, strict=True):
        try:
            require_samples(shards)
        except InputError as error:
            raise InputError(f"data subset '{subset.name}': {error}") from error
        counted.append(_with_samples(subset, sum(shard.samples for shard in shards)))
    _refuse_copies([(subset.name, shard) for subset, shards in zip(subsets, groups, strict=True) for shard in shards])
    return tuple(counted), groups


def _count_remote(
    subsets: Sequence[Subset], patterns: Sequence[Sequence[str]], progress: Progress | None
) -> tuple[Subset, ...]:
    for subset in subsets:
        if not is_remote(subset.shards):
            raise InputError(
                f"data subset '{subset.name}' is local, but others are streamed; stream it too "
                "(shards: 'pipe:cat /path/{00000..00099}.tar'), or copy the others"
            )

    def count() -> list[tuple[int, ...]]:
        return [count_streamed(subset, urls, progress) for subset, urls in zip(subsets, patterns, strict=True)]

    counted = []
    for subset, samples in zip(subsets, on_main(count), strict=True):
        if not sum(samples):
            raise InputError(f"data subset '{subset.name}': no sample in {subset.shards}; correct the pattern")
        counted.append(replace(_with_samples(subset, sum(samples)), shard_samples=tuple(samples)))
    return tuple(counted)


def count_streamed(subset: Subset, urls: Sequence[str], progress: Progress | None = None) -> tuple[int, ...]:
    """Number of samples in each shard of a streamed subset: as it lists them, or counted if it does not list all.

    Args:
        subset: the streamed subset.
        urls: the URLs of its shards.
        progress: called with the number of shards counted.

    Raises:
        InputError: a shard cannot be streamed.
    """
    known = subset.shard_samples or ()
    return known if len(known) == len(urls) else count_samples(urls, progress)


def _with_samples(subset: Subset, samples: int) -> Subset:
    if subset.samples not in (None, samples):
        raise InputError(
            f"data subset '{subset.name}' had {subset.samples} samples when it was counted and has {samples} now; "
            f"restore the shards ({subset.shards}), or begin a new run; if no run has used the subset yet, remove its "
            "`samples` from the list instead"
        )
    return replace(subset, samples=samples)


def _refuse_copies(shards: Sequence[tuple[str, IndexedShard]]) -> None:
    owners: dict[str, tuple[str, IndexedShard]] = {}
    for name, shard in shards:
        other, same = owners.setdefault(shard.stamp, (name, shard)) if shard.samples else (name, shard)
        if same is not shard:
            raise InputError(
                f"shard {shard.path} of data subset '{name}' is a copy of {same.path} of '{other}'; remove one of them"
            )


def find_shards(pattern: str) -> list[str]:
    """The absolute paths, or the URLs, of the shards that a pattern matches, in its order; a glob's matches are sorted.

    A relative pattern is relative to the working directory.

    Raises:
        InputError: braces are unbalanced, a folder or shard that the pattern names does not exist, or no tar matches.
    """
    try:
        parts = list(braceexpand(pattern))
    except UnbalancedBracesError as error:
        raise InputError(f"the shard pattern '{pattern}' has unbalanced braces; correct it") from error
    if is_remote(pattern):
        return parts
    base = Path.cwd()

    def find(part: str) -> list[Path]:
        part = str(Path(part).expanduser())
        path = base / part
        if glob.has_magic(part):
            # Not Path.glob, as the part may be an absolute path.
            matches = glob.glob(part, root_dir=base, recursive=True)  # noqa: PTH207
            return sorted(base / match for match in matches if match.endswith(".tar"))
        if path.is_file():
            return [path]
        if path.is_dir():
            return sorted(path.glob("*.tar"))
        raise InputError(f"there is no {path} ('shards: {pattern}'); correct the path, or put the shards there")

    found = [str(path) for path in itertools.chain.from_iterable(for_each_file(find, parts))]
    if not found:
        raise InputError(f"no .tar file matches '{pattern}' in {base}; correct the pattern, or put the shards there")
    return found


def write_subsets(subsets: Sequence[Subset], path: Path | str) -> None:
    """Writes `data.yaml`, whole or not at all."""
    entries = []
    for subset in subsets:
        entry = asdict(subset)
        counts = entry.pop("shard_samples")
        entries.append(entry if counts is None else entry | {"shard_samples": list(counts)})
    write_text(Path(path), to_yaml(entries))


def read_subsets(path: Path | str) -> list[Subset]:
    """Reads `data.yaml`.

    Raises:
        InputError: the file is missing, or is not a list of {name, shards, samples}.
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
    """The subsets recorded in a run's `data.yaml` when they were opened, followed by those that its config adds.

    Recorded entries without counted samples, which earlier versions wrote, were never opened and are ignored.

    Raises:
        InputError: the config changes, reorders or omits a recorded subset.
    """
    recorded = [subset for subset in recorded if subset.samples is not None]
    for place, old in enumerate(recorded):
        new = configured[place] if place < len(configured) else None
        if new is None or (new.name, new.shards) != (old.name, old.shards):
            now = f"'{new.name}' ({new.shards})" if new else "missing"
            raise InputError(
                f"data subset {place + 1} of this run is '{old.name}' ({old.shards}), but in the config it is {now}; "
                "subsets that a growth step has used stay as they are: restore the list and append a new one, or begin "
                "a new run with another output folder"
            )
    return [*recorded, *configured[len(recorded) :]]


def _find_all(subsets: Sequence[Subset]) -> list[list[str]]:
    for name, count in Counter(subset.name for subset in subsets).items():
        if count > 1:
            raise InputError(f"two data subsets are called '{name}'; give each its own name")
    owners: dict[str, str] = {}
    found = []
    for subset in subsets:
        try:
            shards = find_shards(subset.shards)
        except InputError as error:
            raise InputError(f"data subset '{subset.name}': {error}") from error
        targets = shards if is_remote(subset.shards) else for_each_file(os.path.realpath, shards)
        for shard, target in zip(shards, targets, strict=True):
            if target in owners:
                raise InputError(
                    f"shard {shard} is in data subset '{owners[target]}' and again in '{subset.name}'; "
                    "each may be in only one subset, once"
                )
            owners[target] = subset.name
        found.append(shards)
    return found
