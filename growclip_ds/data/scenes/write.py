"""Writes the built-in data: training subsets in img2dataset's layout, evaluation sets in CLIP-benchmark's.

    OUT/scenes.json                                   the arguments, and the number of samples of every set
    OUT/train/subset_1/10000.tar, 10000_stats.json    shards of subset s are numbered from s0000 on
    OUT/eval/scenes_objects/test/0.tar, …             with each set's class names and templates

Shards depend only on the arguments, so an interrupted call is resumed by writing the missing shards.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from growclip_ds.data.scenes.sets import CLASSES, EVALUATION_SETS, TEMPLATES, evaluation_sample, training_sample
from growclip_ds.errors import InputError
from growclip_ds.files import write_json, write_text

GENERATOR_VERSION = 1  # increment with every change of the samples
SHARDS_PER_SUBSET = 10_000
MOST_SHARD_SAMPLES = 10_000  # keys have four digits for the position in the shard
MANIFEST = "scenes.json"


@dataclass(frozen=True)
class Arguments:
    """The arguments that determine every byte of the data; see `write_scenes`."""

    samples: int
    subsets: int
    seed: int
    size: int
    shard_size: int
    eval_samples: int
    generator_version: int = GENERATOR_VERSION

    def check(self) -> None:
        """Raises an InputError if an argument is out of its range."""
        most_classes = max(map(len, CLASSES.values()))
        for name, least, most, why in (
            ("subsets", 1, None, ""),
            ("samples", self.subsets, None, ", one for each subset"),
            ("seed", 0, None, ""),
            ("size", 32, 4096, " pixels"),
            ("shard_size", 1, MOST_SHARD_SAMPLES, ""),
            ("eval_samples", most_classes, None, ", one for each class"),
        ):
            value = getattr(self, name)
            if value < least or (most is not None and value > most):
                bounds = f"at least {least}" if most is None else f"between {least} and {most}"
                raise InputError(f"--{name.replace('_', '-')} must be {bounds}{why}, not {value}")
        if -(-self.subset_sizes()[0] // self.shard_size) > SHARDS_PER_SUBSET:
            raise InputError(
                f"--shard-size {self.shard_size} makes more than {SHARDS_PER_SUBSET} shards a subset: "
                "raise it, or ask for more subsets"
            )

    def subset_sizes(self) -> list[int]:
        """Number of samples in each subset; they differ by at most one."""
        share, rest = divmod(self.samples, self.subsets)
        return [share + (subset < rest) for subset in range(self.subsets)]


@dataclass(frozen=True)
class Shard:
    """A tar with samples `first` to `first + count - 1` of a training subset, or of an evaluation set."""

    path: Path
    first: int
    count: int
    subset: int = 0
    dataset: str = ""

    @property
    def stats_path(self) -> Path:
        return self.path.with_name(f"{self.path.stem}_stats.json")

    @property
    def finished(self) -> bool:
        """Whether the shard is complete on disk; the stats of a training shard are written last."""
        return self.path.is_file() and (bool(self.dataset) or self.stats_path.is_file())


def write_scenes(
    out: Path,
    samples: int,
    subsets: int = 1,
    seed: int = 0,
    size: int = 96,
    shard_size: int = 1000,
    eval_samples: int = 960,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Writes the built-in data to a folder, skipping shards that are already there.

    Sample i of a subset does not depend on the numbers of samples, subsets, shards and workers.

    Args:
        out: a new or empty folder, or one that an earlier call with the same arguments wrote to.
        samples: number of training pairs in all subsets.
        subsets: number of training subsets, of equal size (to within one).
        seed: random seed.
        size: side of the square images in pixels.
        shard_size: maximum samples per tar.
        eval_samples: images per evaluation set.
        workers: number of processes that draw; 1: only this one.
        progress: called after each shard with the number of finished shards and of all shards.

    Returns:
        The number of shards written; 0 if the data was complete.

    Raises:
        InputError: an argument is out of its range, or the folder holds something else or cannot be written.
    """
    arguments = Arguments(samples, subsets, seed, size, shard_size, eval_samples)
    arguments.check()
    shards = list(_plan(out, arguments))
    _claim(out, arguments)
    missing = [shard for shard in shards if not shard.finished]
    for folder in {shard.path.parent for shard in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    done = len(shards) - len(missing)
    for _ in _write_all(missing, arguments, workers):
        done += 1
        if progress is not None:
            progress(done, len(shards))
    for dataset in EVALUATION_SETS:
        _describe_set(out / "eval" / dataset, dataset, sum(shard.dataset == dataset for shard in shards))
    return len(missing)


def _plan(out: Path, arguments: Arguments) -> Iterator[Shard]:
    for subset, samples in enumerate(arguments.subset_sizes(), start=1):
        for number, first in enumerate(range(0, samples, arguments.shard_size), start=subset * SHARDS_PER_SUBSET):
            path = out / "train" / f"subset_{subset}" / f"{number:05d}.tar"
            yield Shard(path, first, min(arguments.shard_size, samples - first), subset=subset)
    for dataset in EVALUATION_SETS:
        for number, first in enumerate(range(0, arguments.eval_samples, arguments.shard_size)):
            path = out / "eval" / dataset / "test" / f"{number}.tar"
            yield Shard(path, first, min(arguments.shard_size, arguments.eval_samples - first), dataset=dataset)


def _claim(out: Path, arguments: Arguments) -> None:
    """Writes the manifest to the folder; raises an InputError if the folder holds anything but this data."""
    manifest = out / MANIFEST
    contents = {
        "arguments": asdict(arguments),
        "train": {f"subset_{subset}": size for subset, size in enumerate(arguments.subset_sizes(), start=1)},
        "eval": dict.fromkeys(EVALUATION_SETS, arguments.eval_samples),
    }
    if manifest.is_file():
        try:
            before = json.loads(manifest.read_text())["arguments"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{manifest} cannot be read ({error}): remove {out}, or give another folder") from error
        if before != asdict(arguments):
            changed = [name for name, value in asdict(arguments).items() if before.get(name) != value]
            was = ", ".join(f"{name} {before.get(name)}, now {getattr(arguments, name)}" for name in changed)
            raise InputError(f"{out} holds other scenes ({was}): give another folder, or remove this one first")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not an empty folder and holds no {MANIFEST}: give another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(manifest, contents)
    except OSError as error:
        raise InputError(f"{out} cannot be written to ({error.strerror}): give another folder") from error


def _write_all(shards: list[Shard], arguments: Arguments, workers: int) -> Iterator[None]:
    if workers <= 1 or len(shards) <= 1:
        for shard in shards:
            write_shard(shard, arguments)
            yield
        return
    # A fork server: forking this process would be unsafe if it has threads, and spawned workers would each import
    # webdataset, and with it torch.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "webdataset"])
    with ProcessPoolExecutor(min(workers, len(shards)), mp_context=context) as pool:
        futures = [pool.submit(write_shard, shard, arguments) for shard in shards]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def write_shard(shard: Shard, arguments: Arguments) -> None:
    """Draws a shard's samples and writes its tar, and for training its stats, each atomically."""
    from webdataset.writer import TarWriter  # imports torch, which nothing else here needs

    part = part_of(shard.path)
    # Raw bytes, fixed times and owners: the same arguments give a bit-identical tar.
    with part.open("wb") as stream, TarWriter(stream, encoder=False, mtime=0) as tar:
        for place in range(shard.count):
            index = shard.first + place
            if shard.dataset:
                key = f"s{index:07d}"
                files = evaluation_sample(arguments.seed, shard.dataset, index, arguments.size)
            else:
                key = f"{shard.path.stem}{place:04d}"
                files = training_sample(arguments.seed, shard.subset, index, arguments.size, key)
            tar.write({"__key__": key, **files})
    part.replace(shard.path)
    if not shard.dataset:
        write_json(shard.stats_path, {"count": shard.count, "successes": shard.count})


def _describe_set(folder: Path, dataset: str, shards: int) -> None:
    """Writes the text files of CLIP-benchmark's layout."""
    texts = {"test/nshards.txt": [str(shards)], "dataset_type.txt": ["retrieval"]}
    if dataset in CLASSES:
        texts["dataset_type.txt"] = ["classification"]
        texts["classnames.txt"] = [str(combination) for combination in CLASSES[dataset]]
        texts["zeroshot_classification_templates.txt"] = list(TEMPLATES)
    for name, lines in texts.items():
        text = "".join(f"{line}\n" for line in lines)
        if not (folder / name).is_file() or (folder / name).read_text() != text:
            write_text(folder / name, text)


def part_of(path: Path) -> Path:
    """The temporary name of a file while it is written."""
    return path.with_name(f"{path.name}.part")
