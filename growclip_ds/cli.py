"""`growclip`: what is done beside training, a subcommand each.

A subcommand is a function that adds its parser and one that runs it. What runs is imported there and not above, so that
`growclip --help` need not wait for torch.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from growclip_ds.errors import InputError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code: 0, or 2 where the input is at fault."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except InputError as error:
        print(f"growclip: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("growclip: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="growclip", description="Contrastive language-image pre-training that grows with its data."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    data = commands.add_parser("data", help="make data").add_subparsers(metavar="COMMAND", required=True)
    _add_data_scenes(data)
    return parser


def _add_data_scenes(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "scenes",
        help="write the built-in captioned pictures",
        description="Draws captioned pictures of coloured shapes: OUT/train/subset_1, … as webdataset shards, and "
        "OUT/eval/scenes_objects, scenes_selection (zero-shot classification) and scenes_retrieval. The same "
        "arguments give the same bytes; what is there already is not written again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument("--samples", type=int, default=6000, help="training pairs in all subsets together")
    parser.add_argument("--subsets", type=int, default=3, help="parts to divide the training pairs into")
    parser.add_argument("--seed", type=int, default=0, help="what everything is drawn from")
    parser.add_argument("--size", type=int, default=96, help="side of the pictures in pixels")
    parser.add_argument("--shard-size", type=int, default=1000, help="most samples of a shard")
    parser.add_argument("--eval-samples", type=int, default=960, help="pictures of each evaluation set")
    parser.add_argument("--workers", type=int, default=_processors(), help="processes that draw")
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
        f"{options.eval_samples:,} pictures, {written} shards written in {time.monotonic() - start:.0f} s"
    )
    return 0


def _processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
