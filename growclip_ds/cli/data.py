"""`growclip data`: generate the built-in scenes, maintain lists of data subsets, check and stage data."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growclip_ds.cli.help import add_overrides
from growclip_ds.cli.output import check_place, put_text
from growclip_ds.data.worker_processes import processors
from growclip_ds.errors import InputError

if TYPE_CHECKING:
    from growclip_ds.data.check import DataReport
    from growclip_ds.data.faults import Cause
    from growclip_ds.data.index_file import IndexedShard
    from growclip_ds.data.shards import Progress

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_SHOWN = 10  # maximum broken samples to print
_BAR = 40  # length of the longest bar of a histogram in characters


def add_data_commands(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands `add`, `check`, `scenes` and `stage`."""
    parser.description = "Generates, lists, checks and copies training data: webdataset shards of images and captions."
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_data_add(commands)
    _add_data_check(commands)
    _add_data_scenes(commands)
    _add_data_stage(commands)


def _add_data_add(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "add",
        help="append a subset to a list of data, or extend one",
        description="Indexes and counts the shards of a new data subset and appends it to LIST, which is created if it "
        "does not exist. A run configured with `data: {subsets: LIST}` trains on its first t subsets in growth step t. "
        "Shards that are already in LIST, under whatever path, are refused. --extend adds the shards to the subset "
        "NAME of LIST instead; use it only for a subset that no run has used yet.",
        epilog="Examples:\n\n"
        "  growclip data add data/mine.yaml first /data/first/*.tar\n"
        "  growclip data add data/mine.yaml second 's3://bucket/second/{00000..00310}.tar'\n"
        "  growclip data add data/mine.yaml second 's3://bucket/week2/{00000..00031}.tar' --extend",
    )
    parser.add_argument("list", type=Path, metavar="LIST", help="the list, a YAML file")
    parser.add_argument("name", metavar="NAME", help="the new subset's name, or with --extend that of one in LIST")
    parser.add_argument(
        "shards",
        nargs="+",
        metavar="SHARDS",
        help="a folder, tars, a glob or a brace pattern ({00000..00310}.tar); to stream them, a brace pattern of "
        "URLs (https://…, s3://…, pipe:command)",
    )
    parser.add_argument("--extend", action="store_true", help="add the shards to the subset NAME of LIST")
    parser.set_defaults(run=_data_add)


def _data_add(options: argparse.Namespace) -> int:
    from growclip_ds.data.data_list import add_subset, extend_subset
    from growclip_ds.data.faults import in_words
    from growclip_ds.data.progress import counting

    put = extend_subset if options.extend else add_subset
    with counting("indexing shards") as progress:
        subsets = put(options.list, options.name, options.shards, progress)
    if left_out := _left_out(options.shards):
        print(f"unusable samples in the added shards: {in_words(left_out)}; `growclip data check` lists them")
    print(f"{options.list}: growth step, subset, samples, samples of the step")
    arrived = 0
    for step, subset in enumerate(subsets, start=1):
        arrived += subset.samples or 0
        print(f"{step:>4}  {subset.name}  {subset.samples:,}  {arrived:,}")
    return 0


def _left_out(patterns: Sequence[str]) -> Counter[Cause]:
    """Number of unusable samples in shards that have just been indexed, by cause; streamed ones are not known yet."""
    from growclip_ds.data.data_list import one_pattern
    from growclip_ds.data.index_file import read_index
    from growclip_ds.data.remote import is_remote
    from growclip_ds.data.shards import for_each_file
    from growclip_ds.data.subsets import find_shards

    pattern = one_pattern(patterns)
    indexes = [] if is_remote(pattern) else for_each_file(read_index, find_shards(pattern))
    return sum((index.left_out for index in indexes if index), Counter())


def _add_data_check(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "check",
        help="read all data once and report on it",
        description="Reads and decodes every sample once, and reports counts, sizes, caption lengths, broken samples. "
        "The exit code is 1 if more samples are broken than --max-broken-share, or none is usable.",
        epilog="Examples:\n\n"
        "  growclip data check data/mine.yaml --broken broken.jsonl\n"
        "  growclip data check '/data/first/*.tar' --tokenizer openai/clip-vit-base-patch32 --json",
    )
    parser.add_argument("shards", nargs="+", metavar="DATA", help="lists (.yaml) or shards, as for `data add`")
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="name or folder of a tokenizer: measure captions in tokens, not words"
    )
    parser.add_argument("--context-length", type=int, metavar="N", default=77, help="maximum tokens per caption")
    parser.add_argument(
        "--max-broken-share", type=float, metavar="SHARE", default=0.01, help="tolerated share of broken samples"
    )
    parser.add_argument("--broken", type=Path, metavar="FILE", help="write the broken samples as JSON lines")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--workers", type=int, metavar="N", default=processors(), help="number of processes")
    parser.set_defaults(run=_data_check)


def _data_check(options: argparse.Namespace) -> int:
    from growclip_ds.data.check import check_data
    from growclip_ds.data.progress import counting
    from growclip_ds.data.shards import what_a_sample_is
    from growclip_ds.data.tokens import load_tokenizer

    check_place(options.broken)
    if not 0 <= options.max_broken_share <= 1:  # written so that NaN, which nothing exceeds, fails too
        raise InputError(f"--max-broken-share must be a number from 0 to 1, not {options.max_broken_share:g}")
    tokenizer = load_tokenizer(options.tokenizer, sys.maxsize) if options.tokenizer else None
    with counting("indexing shards") as progress:
        local, remote = _open(options.shards, progress)
    with counting("reading shards") as progress:
        report = check_data(local, remote, tokenizer, options.workers, progress)
    found = report.to_json()
    if tokenizer is not None:
        cut = sum(count for length, count in report.caption_lengths.items() if length > options.context_length)
        found["captions"]["longer_than_context"] = cut
    print(json.dumps(found, indent=2) if options.json else "\n".join(_lines(report, found)))
    if options.broken is not None:
        put_text(options.broken, "".join(json.dumps(entry) + "\n" for entry in found["broken_samples"]))
    if not found["usable"]:
        print(f"growclip: no usable sample: {what_a_sample_is(report.broken)}", file=sys.stderr)
        return 1
    return int(report.broken_share > options.max_broken_share)


def _open(given: Sequence[str], progress: Progress | None) -> tuple[list[IndexedShard], list[tuple[str, int]]]:
    """Indexes the local shards, and counts the remote ones: (URL, number of samples) each."""
    from growclip_ds.data.data_list import one_pattern
    from growclip_ds.data.remote import is_remote
    from growclip_ds.data.shards import open_shards
    from growclip_ds.data.subsets import Subset, count_streamed, find_shards, read_subsets

    subsets: list[Subset] = []
    for text in given:
        listed = text.endswith((".yaml", ".yml"))
        subsets += read_subsets(text) if listed else [Subset(text, one_pattern([text]))]
    paths: list[str] = []
    remote: list[tuple[str, int]] = []
    for subset in subsets:
        found = find_shards(subset.shards)
        if is_remote(subset.shards):
            remote += zip(found, count_streamed(subset, found, progress), strict=True)
        else:
            paths += found
    return open_shards(paths, progress), remote


def _lines(report: DataReport, found: dict[str, Any]) -> list[str]:
    """The report as lines of text; `found` is what its `to_json` has returned."""
    lines = [
        f"shards           {report.shards:,}, {report.size / 1e9:.2f} GB",
        f"samples          {report.samples:,}, of them usable {found['usable']:,}",
    ]
    for name, side in (("short side", found["short_side"]), ("long side", found["long_side"])):
        if side:
            lines.append(f"{name:<16} {_summary(side)} pixels")
    formats = ", ".join(f"{count:,} {name}" for name, count in found["formats"].items())
    lines.append(f"images           {formats or 'none'}")
    captions = found["captions"]
    if report.caption_lengths:
        lines.append(f"captions         {_summary(captions)} {report.unit}")
        if captions.get("longer_than_context"):
            lines.append(f"                 {captions['longer_than_context']:,} longer than the context, cut off there")
        most = max(count for *_, count in captions["histogram"])
        for first, last, count in captions["histogram"]:
            lines.append(f"{first:>8} to {last:>4}  {'#' * round(_BAR * count / most):<{_BAR}} {count:,}")
    lines.append(f"broken           {sum(report.broken.values()):,} ({report.broken_share:.2%})")
    lines += [f"{count:>8,} with {cause}" for cause, count in report.broken.most_common()]
    for place in report.broken_samples[:_SHOWN]:
        lines.append(f"         {place.key}: {place.cause} ({place.shard})")
    if len(report.broken_samples) > _SHOWN:
        lines.append(f"         … {len(report.broken_samples) - _SHOWN:,} more: --broken FILE lists all")
    return lines


def _summary(numbers: dict[str, float]) -> str:
    return f"{numbers['min']} to {numbers['max']}, median {numbers['median']}, mean {numbers['mean']:.1f}"


def _add_data_scenes(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "scenes",
        help="generate the built-in captioned images",
        description="Draws captioned images of coloured shapes: OUT/train/subset_1, … as webdataset shards, and "
        "OUT/eval/scenes_objects, scenes_selection (zero-shot classification) and scenes_retrieval. The same "
        "arguments give the same bytes; existing files are not written again.",
        epilog="Example, the data of configs/demo.yaml:\n\n"
        "  growclip data scenes data/scenes --samples 6000 --subsets 3 --size 64",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument("--samples", type=int, metavar="N", default=6000, help="training pairs over all subsets")
    parser.add_argument("--subsets", type=int, metavar="N", default=3, help="number of training subsets")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="random seed")
    parser.add_argument("--size", type=int, metavar="N", default=96, help="height and width of the images in pixels")
    parser.add_argument("--shard-size", type=int, metavar="N", default=1000, help="maximum samples per shard")
    parser.add_argument("--eval-samples", type=int, metavar="N", default=960, help="images per evaluation set")
    parser.add_argument("--workers", type=int, metavar="N", default=processors(), help="number of processes")
    parser.set_defaults(run=_data_scenes)


def _data_scenes(options: argparse.Namespace) -> int:
    from growclip_ds.data.scenes.write import write_scenes

    def progress(done: int, shards: int) -> None:
        print(f"\rshard {done} of {shards}", end="\n" if done == shards else "", file=sys.stderr, flush=True)

    start = time.monotonic()
    written = write_scenes(
        options.out,
        options.samples,
        options.subsets,
        options.seed,
        size=options.size,
        shard_size=options.shard_size,
        eval_samples=options.eval_samples,
        workers=options.workers,
        progress=progress if sys.stderr.isatty() else None,
    )
    if not written:
        print(f"{options.out} is complete already")
        return 0
    print(
        f"{options.out}: {options.samples:,} training pairs in {options.subsets} subsets and 3 evaluation sets of "
        f"{options.eval_samples:,} images, {written} shards written in {time.monotonic() - start:.0f} s"
    )
    return 0


def _add_data_stage(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "stage",
        help="copy a run's shards to this machine's local disk",
        description="Copies the local shards that a run trains on to DIR, as DIR/PATH/OF/THE/SHARD.tar, unless they "
        "are there unchanged. With `data.staged=DIR` a run reads the copies.",
        epilog="Example:\n\n  growclip data stage --to /local/disk --config configs/mine.yaml",
    )
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="a folder on this machine's local disk")
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="the run's configuration, such as configs/cc12m.yaml"
    )
    parser.add_argument(
        "--growth-step", type=int, metavar="N", help="copy what this growth step needs (default: the last)"
    )
    add_overrides(parser)
    parser.set_defaults(run=_data_stage)


def _data_stage(options: argparse.Namespace) -> int:
    from growclip_ds.config.config import load_config
    from growclip_ds.data.progress import counting
    from growclip_ds.data.remote import is_remote
    from growclip_ds.data.staging import stage_shards
    from growclip_ds.data.subsets import find_shards

    config = load_config(options.config, options.overrides)
    steps = config.num_growth_steps
    last = steps if options.growth_step is None else options.growth_step
    if not 1 <= last <= steps:
        raise InputError(f"--growth-step {last}: the run has growth steps 1 to {steps}; choose one of these")
    subsets = config.data.subsets[:last]
    shards = [shard for subset in subsets if not is_remote(subset.shards) for shard in find_shards(subset.shards)]
    start = time.monotonic()
    with counting("copying shards") as progress:
        copied = stage_shards(shards, options.to, progress)
    seconds = time.monotonic() - start
    print(f"{options.to}: {len(shards):,} shards, {copied / 1e9:.2f} GB of them copied in {seconds:.0f} s")
    return 0
