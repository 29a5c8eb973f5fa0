"""Evaluation sets in the webdataset layout of CLIP-benchmark, checked before use.

A set has `test/nshards.txt`, `test/0.tar` and so on, `dataset_type.txt` ("classification", the default, or
"retrieval"), and for classification `classnames.txt` and `zeroshot_classification_templates.txt`, one a line, with
`{c}` where the class goes. A sample is a picture with its class number (`cls`) or its captions (`txt`, one a line).
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from growclip_ds.config.set_names import SPLIT, set_name
from growclip_ds.data.faults import BrokenSample
from growclip_ds.data.pictures import decode_picture
from growclip_ds.errors import InputError
from growclip_ds.evaluation.shards import RawSample, content, local_headers, local_share, stream
from growclip_ds.evaluation.source import Source

CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
PICTURES = ("jpg", "jpeg", "png", "webp")
TRIAL_SIZE = 32  # side in pixels at which a set's first picture is decoded to see that it can be


@dataclass(frozen=True)
class _Shards(ABC):
    """A set that `load_evaluation_set` opened.

    Attributes:
        name: the set's name in reports.
        shards: its tar files, paths or addresses, in order.
        counts: samples of each; None if they are remote, and not known before they are read.
        identity: a digest of what the set is, wherever it lies: class names, templates, and of local tars annotations
            and every member's name, size and time. Pictures themselves are not in it. Of remote tars it is the
            addresses.
    """

    name: str
    shards: tuple[str, ...]
    counts: tuple[int, ...] | None
    identity: str

    annotation: ClassVar[str]  # extension of the member that says what is right
    meaning: ClassVar[str]  # of that member

    @property
    def samples(self) -> int | None:
        """Samples of all shards, where that is known."""
        return None if self.counts is None else sum(self.counts)

    def wants(self, name: str) -> bool:
        """Whether a tar's member of this name is used."""
        return not name.startswith("__") and name.rpartition(".")[2].lower() in (*PICTURES, self.annotation)

    def check(self, sample: RawSample) -> None:
        """Checks that a sample has what it needs.

        Raises:
            InputError: it has no picture or no annotation.
        """
        where, key = place(sample), sample["__key__"]
        if not any(extension in sample for extension in PICTURES):
            raise InputError(f"{where}: no picture; every sample needs one of {', '.join(PICTURES)}")
        if self.annotation not in sample:
            raise InputError(f"{where}: no {self.meaning}; every sample needs a member {key}.{self.annotation}")

    def annotations(self, sample: RawSample, text: bytes) -> Any:
        """What is right for a sample.

        Args:
            sample: a sample of the set.
            text: its annotation's content.

        Raises:
            InputError: the annotation is invalid; the message says how.
        """
        try:
            return self.parse(text.decode("utf-8", errors="replace"))
        except ValueError as error:
            raise InputError(f"{place(sample)}: {error}; correct the set") from error

    @abstractmethod
    def parse(self, text: str) -> Any:
        """What is right for a sample, from its annotation. Raises a ValueError that says what is wrong with it."""


@dataclass(frozen=True)
class ClassificationSet(_Shards):
    """Pictures of one class each.

    Attributes:
        class_names: names, indexed by class number.
        templates: prompt templates, each with `{c}`.
    """

    class_names: tuple[str, ...]
    templates: tuple[str, ...]

    annotation = "cls"
    meaning = "class"

    def parse(self, text: str) -> int:
        if not text.strip().isdecimal():
            raise ValueError(f"its class {text.strip()!r} is not a number")
        if int(text) >= len(self.class_names):
            raise ValueError(f"its class is {int(text)}, but {CLASS_NAMES} names 0 to {len(self.class_names) - 1}")
        return int(text)


@dataclass(frozen=True)
class RetrievalSet(_Shards):
    """Pictures with one or more captions each."""

    annotation = "txt"
    meaning = "captions"

    def parse(self, text: str) -> list[str]:
        captions = [line.strip() for line in text.splitlines() if line.strip()]
        if not captions:
            raise ValueError("it has no caption")
        return captions


EvaluationSet = ClassificationSet | RetrievalSet


def load_evaluation_set(location: Path | str, split: str = SPLIT, name: str | None = None) -> EvaluationSet:
    """Opens a set and looks through all of a local one but the pictures' contents, so that nothing is amiss later.

    Of the pictures the first is decoded, since a set in a format that nothing here reads would show only when used.
    Samples of a remote set are checked when they are read.

    Every local shard's headers are read; in a run of many ranks let one do it (`distributed.on_main`).

    Args:
        location: see `Source`.
        split: folder of the set with the shards.
        name: the set's name in reports; that of `set_name` if None.

    Raises:
        InputError: a file is missing, unreadable, empty or not UTF-8, a template has no `{c}`, a sample has no picture,
            no caption or no valid class, or the first picture cannot be decoded.
    """
    source = Source(str(location))
    if not source.is_remote and not Path(location).is_dir():
        raise InputError(f"evaluation set {location}: no such folder; give one in the layout of CLIP-benchmark")
    name = name or set_name(source.location, split)
    text = source.read("dataset_type.txt", is_required=False)
    kind = "classification" if text is None else text.strip().lower()
    shards = _shards(source, split)
    dataset: EvaluationSet
    if kind == "classification":
        class_names = _lines(source, CLASS_NAMES, "one class name a line")
        templates = _lines(source, TEMPLATES, "one prompt a line, with {c} for the class")
        for template in templates:
            if "{c}" not in template:
                raise InputError(
                    f"{source.address(TEMPLATES)}: the template {template!r} has no {{c}}; "
                    "put {c} where the class name belongs"
                )
        dataset = ClassificationSet(name, shards, None, "", class_names, templates)
    elif kind == "retrieval":
        dataset = RetrievalSet(name, shards, None, "")
    else:
        raise InputError(
            f"{source.address('dataset_type.txt')}: {kind!r} is not a known type; write classification or retrieval"
        )
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(dataset, ClassificationSet):
        digest.update(json.dumps([dataset.class_names, dataset.templates]).encode())
    if source.is_remote:
        digest.update(json.dumps(shards).encode())
        dataset = replace(dataset, identity=digest.hexdigest())
    else:
        counts = tuple(_check_shard(dataset, shard, digest) for shard in shards)
        dataset = replace(dataset, counts=counts, identity=digest.hexdigest())
        if not dataset.samples:
            raise InputError(f"evaluation set {location}: no samples in {len(shards)} shards under {split}/")
    _check_first_picture(dataset)
    return dataset


def place(sample: RawSample) -> str:
    """Where a sample is, for messages."""
    return f"{sample['__url__']}: sample {sample['__key__']}"


def picture_extension(sample: RawSample) -> str:
    """Of the member that is the sample's picture."""
    return next(extension for extension in PICTURES if extension in sample)


def _lines(source: Source, path: str, meaning: str) -> tuple[str, ...]:
    """The file's lines, stripped; blank ones are allowed at the end only, since a line's number may have a meaning."""
    text, file = source.read(path), source.address(path)
    if text is None:
        raise InputError(f"{file}: no such file; the set needs it, {meaning}")
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines:
        raise InputError(f"{file}: the file is empty; it must hold {meaning}")
    if "" in lines:
        raise InputError(f"{file}: line {lines.index('') + 1} is blank; it must hold {meaning}")
    return tuple(lines)


def _shards(source: Source, split: str) -> tuple[str, ...]:
    file = source.address(f"{split}/nshards.txt")
    content = source.read(f"{split}/nshards.txt")
    text = (content or "").strip()
    if not text.isdecimal() or int(text) == 0:
        problem = "no such file" if content is None else f"{text!r} is not a number of shards"
        raise InputError(f"{file}: {problem}; it must say how many tar files, 0.tar and so on, lie beside it")
    shards = tuple(source.address(f"{split}/{number}.tar") for number in range(int(text)))
    for shard in () if source.is_remote else shards:
        if not Path(shard).exists():
            raise InputError(f"{shard}: no such file, though {file} says {text} shards")
    return shards


def _check_shard(dataset: EvaluationSet, shard: str, digest: hashlib.blake2b) -> int:
    """Checks every sample of a local tar, seeking over the pictures, and adds it to the digest; returns how many."""
    count = 0
    for tar, sample in local_headers(shard, dataset.wants):
        dataset.check(sample)
        annotation = content(tar, sample[dataset.annotation])
        dataset.annotations(sample, annotation)
        members = [(m.name, m.size, m.mtime) for m in sample.values() if isinstance(m, tarfile.TarInfo)]
        digest.update(json.dumps(members).encode() + annotation)
        count += 1
    return count


def _check_first_picture(dataset: EvaluationSet) -> None:
    if dataset.counts is None:
        sample = next(stream(dataset.shards[0], dataset.wants), None)
    else:
        sample = next(local_share(dataset.shards, dataset.counts, dataset.wants, 0, 1))
    if sample is None:
        raise InputError(f"{dataset.shards[0]}: no samples of evaluation set {dataset.name}; correct its location")
    dataset.check(sample)
    extension = picture_extension(sample)
    try:
        decode_picture(sample[extension], TRIAL_SIZE)
    except BrokenSample as error:
        raise InputError(
            f"evaluation set {dataset.name}: its first picture, {sample['__key__']}.{extension} in "
            f"{sample['__url__']}, cannot be decoded ({error}); replace it or make the set again"
        ) from error
