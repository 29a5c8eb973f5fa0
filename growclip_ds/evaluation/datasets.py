"""Evaluation sets in the webdataset layout of CLIP-benchmark, checked before use and read by all ranks together.

A set is a folder: `test/nshards.txt`, `test/0.tar` and so on, `dataset_type.txt` ("classification", the default, or
"retrieval"), and for classification `classnames.txt` and `zeroshot_classification_templates.txt`, one a line, with
`{c}` where the class goes. A sample is a picture with its class number (`cls`) or its captions (`txt`, one a line).
"""

from __future__ import annotations

import logging
import math
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from webdataset.tariterators import group_by_keys, tarfile_samples

from growclip_ds.data.faults import BrokenSample
from growclip_ds.data.pictures import decode_picture
from growclip_ds.distributed import rank, world_size
from growclip_ds.errors import InputError

PICTURES = ("jpg", "jpeg", "png", "webp")
DECODING_THREADS = 4
TRIAL_SIZE = 32  # side in pixels at which a set's first picture is decoded to see that it can be

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationSet(ABC):
    """A set that `load_evaluation_set` found whole.

    Attributes:
        name: of the set's folder.
        shards: its tar files, in order.
        samples: number of samples in them.
    """

    name: str
    shards: tuple[Path, ...]
    samples: int

    annotation: ClassVar[str]  # extension of the member that says what is right

    @abstractmethod
    def parse(self, text: str) -> Any:
        """What is right for a sample, from its annotation. Raises a ValueError that says what is wrong with it."""


@dataclass(frozen=True)
class ClassificationSet(EvaluationSet):
    """Pictures of one class each.

    Attributes:
        class_names: by class number.
        templates: of prompts, each with `{c}`.
    """

    class_names: tuple[str, ...]
    templates: tuple[str, ...]

    annotation = "cls"

    def parse(self, text: str) -> int:
        if not text.strip().isdecimal():
            raise ValueError(f"its class {text.strip()!r} is not a number")
        if int(text) >= len(self.class_names):
            raise ValueError(f"its class is {int(text)}, but classnames.txt names 0 to {len(self.class_names) - 1}")
        return int(text)


@dataclass(frozen=True)
class RetrievalSet(EvaluationSet):
    """Pictures with one or more captions each."""

    annotation = "txt"

    def parse(self, text: str) -> list[str]:
        captions = [line.strip() for line in text.splitlines() if line.strip()]
        if not captions:
            raise ValueError("it has no caption")
        return captions


def load_evaluation_set(folder: Path | str, split: str = "test") -> ClassificationSet | RetrievalSet:
    """Opens a set and looks through all of it but the pictures' contents, so that nothing is amiss later.

    Of the pictures the first is decoded, since a set in a format that nothing here reads would show only when used.

    Every shard's headers are read; in a run of many ranks let one do it (`distributed.on_main`).

    Raises:
        InputError: a file is missing, unreadable, empty or not UTF-8, a template has no `{c}`, a sample has no picture,
            no caption or no valid class, or the first picture cannot be decoded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"evaluation set {folder}: no such folder; give one in the layout of CLIP-benchmark")
    type_file = folder / "dataset_type.txt"
    text = _read(type_file)
    kind = "classification" if text is None else text.strip()
    shards = _shards(folder / split)
    dataset: ClassificationSet | RetrievalSet
    if kind == "classification":
        class_names = _lines(folder / "classnames.txt", "one class name a line")
        templates = _lines(
            folder / "zeroshot_classification_templates.txt", "one prompt a line, with {c} for the class"
        )
        for template in templates:
            if "{c}" not in template:
                raise InputError(
                    f"{folder / 'zeroshot_classification_templates.txt'}: the template {template!r} has no {{c}}; "
                    "put {c} where the class name belongs"
                )
        dataset = ClassificationSet(folder.name, shards, 0, class_names, templates)
    elif kind == "retrieval":
        dataset = RetrievalSet(folder.name, shards, 0)
    else:
        raise InputError(f"{type_file}: {kind!r} is no known type; it must say classification or retrieval")
    samples = sum(_count_valid_samples(dataset, shard) for shard in shards)
    if not samples:
        raise InputError(f"evaluation set {folder}: no samples in {len(shards)} shards under {split}/")
    _check_first_picture(dataset)
    if isinstance(dataset, ClassificationSet):
        return ClassificationSet(folder.name, shards, samples, dataset.class_names, dataset.templates)
    return RetrievalSet(folder.name, shards, samples)


def batches(dataset: EvaluationSet, image_size: int, batch_size: int) -> Iterator[tuple[Tensor, list[Any]]]:
    """This rank's share of the set, sample i going to rank i mod W; a batch is decoded while its forerunner is used.

    Every rank gets the same number of batches, the last ones of some being short or empty. A picture that cannot be
    decoded is left out with a warning.

    Yields:
        Pictures, uint8 (n, 3, S, S) with n from 0 to `batch_size`, and n parsed annotations.
    """
    samples = islice(_stream(dataset), rank(), None, world_size())
    share = math.ceil(dataset.samples / world_size())
    with ThreadPoolExecutor(DECODING_THREADS) as pool:

        def start_batch() -> list[tuple[Any, Any]]:
            return [(pool.submit(_decode, s, image_size), _parse(dataset, s)) for s in islice(samples, batch_size)]

        ahead = start_batch()
        for _ in range(math.ceil(share / batch_size)):
            current, ahead = ahead, start_batch()
            decoded = [(future.result(), annotation) for future, annotation in current]
            readable = [(picture, annotation) for picture, annotation in decoded if picture is not None]
            pixels = torch.empty((len(readable), 3, image_size, image_size), dtype=torch.uint8)
            for place, (picture, _) in enumerate(readable):
                pixels[place] = picture
            yield pixels, [annotation for _, annotation in readable]


def _read(file: Path) -> str | None:
    """The file's text; None if there is no such file."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise InputError(f"{file}: the file is not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); see that it is a file you may read") from None


def _lines(file: Path, content: str) -> tuple[str, ...]:
    """The file's lines, stripped; blank ones are allowed at the end only, since a line's number may have a meaning."""
    text = _read(file)
    if text is None:
        raise InputError(f"{file}: no such file; the set needs it, {content}")
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines:
        raise InputError(f"{file}: the file is empty; it must hold {content}")
    if "" in lines:
        raise InputError(f"{file}: line {lines.index('') + 1} is blank; it must hold {content}")
    return tuple(lines)


def _shards(folder: Path) -> tuple[Path, ...]:
    file = folder / "nshards.txt"
    content = _read(file)
    text = (content or "").strip()
    if not text.isdecimal() or int(text) == 0:
        problem = "no such file" if content is None else f"{text!r} is not a number of shards"
        raise InputError(f"{file}: {problem}; it must say how many tar files, 0.tar and so on, lie beside it")
    shards = tuple(folder / f"{number}.tar" for number in range(int(text)))
    for shard in shards:
        if not shard.exists():
            raise InputError(f"{shard}: no such file, though {file} says {text} shards")
    return shards


def _is_wanted(dataset: EvaluationSet, name: str) -> bool:
    return not name.startswith("__") and name.rpartition(".")[2].lower() in (*PICTURES, dataset.annotation)


def _stream(dataset: EvaluationSet) -> Iterator[dict[str, Any]]:
    """All samples in the order of the shards, undecoded."""
    shards = ({"url": str(shard)} for shard in dataset.shards)
    yield from tarfile_samples(shards, select_files=lambda name: _is_wanted(dataset, name))


def _count_valid_samples(dataset: EvaluationSet, shard: Path) -> int:
    """Checks every sample, seeking over the pictures; samples are told apart by webdataset's own rule."""

    def members(tar: tarfile.TarFile) -> Iterator[dict[str, Any]]:
        for member in tar:
            if member.isreg() and _is_wanted(dataset, member.name):
                is_annotation = member.name.lower().endswith(f".{dataset.annotation}")
                content = tar.extractfile(member).read() if is_annotation else b""  # type: ignore[union-attr]
                yield {"fname": member.name, "data": content, "__url__": str(shard)}

    count = 0
    try:
        with tarfile.open(shard, "r:") as tar:
            for count, sample in enumerate(group_by_keys(members(tar)), 1):  # noqa: B007
                _check(dataset, sample)
    except InputError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:  # webdataset reports duplicates as ValueError
        raise InputError(f"{shard}: not a readable tar file ({error}); copy or make it again") from error
    return count


def _check(dataset: EvaluationSet, sample: dict[str, Any]) -> None:
    where = f"{sample['__url__']}: sample {sample['__key__']}"
    if not any(extension in sample for extension in PICTURES):
        raise InputError(f"{where}: no picture; every sample needs one of {', '.join(PICTURES)}")
    if dataset.annotation not in sample:
        meaning = "class" if dataset.annotation == "cls" else "captions"
        raise InputError(f"{where}: no {meaning}; every sample needs a member {sample['__key__']}.{dataset.annotation}")
    _parse(dataset, sample)


def _parse(dataset: EvaluationSet, sample: dict[str, Any]) -> Any:
    try:
        return dataset.parse(sample[dataset.annotation].decode("utf-8", errors="replace"))
    except ValueError as error:
        raise InputError(f"{sample['__url__']}: sample {sample['__key__']}: {error}; correct the set") from error


def _check_first_picture(dataset: EvaluationSet) -> None:
    sample = next(_stream(dataset))
    extension = _extension(sample)
    try:
        decode_picture(sample[extension], TRIAL_SIZE)
    except BrokenSample as error:
        raise InputError(
            f"evaluation set {dataset.name}: its first picture, {sample['__key__']}.{extension} in "
            f"{sample['__url__']}, cannot be decoded ({error}); replace it or make the set again"
        ) from error


def _extension(sample: dict[str, Any]) -> str:
    return next(extension for extension in PICTURES if extension in sample)


def _decode(sample: dict[str, Any], size: int) -> Tensor | None:
    extension = _extension(sample)
    try:
        return decode_picture(sample[extension], size)
    except BrokenSample as error:
        log.warning("%s: %s.%s left out: %s", sample["__url__"], sample["__key__"], extension, error)
        return None
