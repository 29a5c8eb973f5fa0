"""Evaluation sets in the webdataset layout of CLIP-benchmark, checked before use.

A set has `test/nshards.txt`, `test/0.tar` and so on, `dataset_type.txt` ("classification", the default, or
"retrieval"), and for classification `classnames.txt` and `zeroshot_classification_templates.txt`, one entry per line,
with `{c}` in place of the class name. A sample is an image with its class number (`cls`) or its captions (`txt`, one
per line).
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
TRIAL_SIZE = 32  # side in pixels at which a set's first image is decoded, to check that it can be


@dataclass(frozen=True)
class _Shards(ABC):
    """An evaluation set, opened by `load_evaluation_set`.

    Attributes:
        name: name of the set in reports.
        shards: paths or URLs of its tar files, in order.
        counts: number of samples in each shard; None for a remote set, where it is unknown until the shard is read.
        identity: digest of the class names, the templates and the shards: of local ones the annotations and the name,
            size and modification time of every member used, but neither the image contents nor the location; of remote
            ones the URLs.
    """

    name: str
    shards: tuple[str, ...]
    counts: tuple[int, ...] | None
    identity: str

    annotation: ClassVar[str]  # extension of the member that holds the ground truth
    meaning: ClassVar[str]  # what that member holds, for messages

    @property
    def samples(self) -> int | None:
        """Number of samples in all shards; None for a remote set."""
        return None if self.counts is None else sum(self.counts)

    def wants(self, name: str) -> bool:
        """Whether the set uses a tar member of this name."""
        return not name.startswith("__") and name.rpartition(".")[2].lower() in (*PICTURES, self.annotation)

    def check(self, sample: RawSample) -> None:
        """Checks that a sample is complete.

        Raises:
            InputError: it has no image or no annotation.
        """
        where, key = place(sample), sample["__key__"]
        if not any(extension in sample for extension in PICTURES):
            raise InputError(f"{where}: no image; every sample needs one of {', '.join(PICTURES)}")
        if self.annotation not in sample:
            raise InputError(f"{where}: no {self.meaning}; every sample needs a member {key}.{self.annotation}")

    def annotations(self, sample: RawSample, text: bytes) -> Any:
        """The ground truth of a sample.

        Args:
            sample: the sample, named in messages.
            text: content of its annotation member.

        Raises:
            InputError: the annotation is invalid; the message says how.
        """
        try:
            return self.parse(text.decode("utf-8", errors="replace"))
        except ValueError as error:
            raise InputError(f"{place(sample)}: {error}; correct the set") from error

    @abstractmethod
    def parse(self, text: str) -> Any:
        """The ground truth that an annotation's text states.

        Raises:
            ValueError: the annotation is invalid; the message says how.
        """


@dataclass(frozen=True)
class ClassificationSet(_Shards):
    """Images of one class each.

    Attributes:
        class_names: names of the classes, indexed by class number.
        templates: prompt templates, with `{c}` in place of the class name.
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
    """Images with one or more captions each."""

    annotation = "txt"
    meaning = "captions"

    def parse(self, text: str) -> list[str]:
        captions = [line.strip() for line in text.splitlines() if line.strip()]
        if not captions:
            raise ValueError("it has no caption")
        return captions


EvaluationSet = ClassificationSet | RetrievalSet


def load_evaluation_set(location: Path | str, split: str = SPLIT, name: str | None = None) -> EvaluationSet:
    """Opens a set and checks all of a local one except the image contents, so that errors surface early.

    Only the first image is decoded: without that, images in an unsupported format would be noticed only in use.
    Samples of a remote set are checked as they are read.

    Reads the headers of every local shard; with many ranks, call it on one of them (`distributed.on_main`).

    Args:
        location: folder, URL or command; see `Source`.
        split: subfolder of the set that holds the shards.
        name: name of the set in reports; if None, `set_name` derives it from the location.

    Raises:
        InputError: a file is missing, unreadable, empty or not UTF-8, a template has no `{c}`, a sample has no image,
            no caption or no valid class, or the first image cannot be decoded.
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
        class_names = _lines(source, CLASS_NAMES, "one class name per line")
        templates = _lines(source, TEMPLATES, "one prompt per line, with {c} for the class")
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
    """The location of a sample, for messages."""
    return f"{sample['__url__']}: sample {sample['__key__']}"


def picture_extension(sample: RawSample) -> str:
    """The extension of the sample's image member."""
    return next(extension for extension in PICTURES if extension in sample)


def _lines(source: Source, path: str, meaning: str) -> tuple[str, ...]:
    """The file's lines, stripped. Blank lines may only be at the end, since line numbers may be class numbers."""
    text, file = source.read(path), source.address(path)
    if text is None:
        raise InputError(f"{file}: no such file; the set needs it, with {meaning}")
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
        raise InputError(f"{file}: {problem}; it must state the number of tar files beside it, 0.tar and so on")
    shards = tuple(source.address(f"{split}/{number}.tar") for number in range(int(text)))
    for shard in () if source.is_remote else shards:
        if not Path(shard).exists():
            raise InputError(f"{shard}: no such file, though {file} says {text} shards")
    return shards


def _check_shard(dataset: EvaluationSet, shard: str, digest: hashlib.blake2b) -> int:
    """Checks every sample of a local tar without reading the images, and adds it to the digest.

    Returns:
        The number of samples.
    """
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
        raise InputError(f"{dataset.shards[0]}: no samples of evaluation set {dataset.name}; check its location")
    dataset.check(sample)
    extension = picture_extension(sample)
    try:
        decode_picture(sample[extension], TRIAL_SIZE)
    except BrokenSample as error:
        raise InputError(
            f"evaluation set {dataset.name}: its first image, {sample['__key__']}.{extension} in "
            f"{sample['__url__']}, cannot be decoded ({error}); replace it or make the set again"
        ) from error
