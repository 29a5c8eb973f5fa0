"""`growclip plan`: estimate what a run, or the rest of one, will cost."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from growclip_ds.cli.help import add_overrides
from growclip_ds.cli.output import STANDARD_OUTPUT, check_place, put_json
from growclip_ds.errors import InputError

if TYPE_CHECKING:
    from growclip_ds.config.config import Config
    from growclip_ds.costs.begun import BegunRun


def add_plan_command(parser: argparse.ArgumentParser) -> None:
    """Adds the description and arguments to the command's parser."""
    parser.description = (
        "Estimates what a run will cost before it starts: for every growth step the candidates with their parameters "
        "and FLOPs, memory and communication at ZeRO 1, 2 and 3, what fits on a GPU, device hours, wall-clock hours "
        "and disk. Which candidates will be selected is not known, so the run lies between its cheapest and its most "
        "expensive path. Needs neither the data nor a GPU.\n\n"
        "For a run that has started, --run estimates the rest: from its newest checkpoint on, with the architectures "
        "that it has grown, the samples that it has counted and the speed that it had."
    )
    parser.epilog = (
        "Examples:\n\n"
        "  growclip plan --config configs/cc12m.yaml --deepspeed_config ds_configs/zero2.json --gpus 16 "
        "--hardware configs/hardware/h100-80.yaml\n"
        "  growclip plan --config configs/cc12m.yaml --gpus 16 --throughput 20000 data.subsets.0.samples=3000000\n"
        "  growclip plan --run runs/mine\n"
        "  growclip plan --run runs/mine --deepspeed_config ds_configs/zero3.json --gpus 32 data.subsets=data/mine.yaml"
    )
    parser.add_argument("--config", metavar="FILE", help="configuration of a new run, such as configs/cc12m.yaml")
    parser.add_argument(
        "--run",
        dest="begun",
        type=Path,
        metavar="RUN",
        help="instead of --config: the folder of a run that has started",
    )
    parser.add_argument(
        "--deepspeed_config",
        metavar="FILE",
        help="the DeepSpeed file, such as ds_configs/zero2.json (default: stage 2, buckets of 25 million, in fp32 or "
        "in the precision of --run)",
    )
    parser.add_argument("--hardware", metavar="FILE", help="the GPU, such as configs/hardware/h100-80.yaml")
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="number of GPUs (default: 1, or as many as --run last had)"
    )
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument(
        "--throughput",
        type=float,
        metavar="PAIRS/S",
        help="throughput of all GPUs together, measured or assumed, for the model of growth step 1",
    )
    speed.add_argument(
        "--utilisation", type=float, metavar="SHARE", help="assumed share of the peak of --hardware, such as 0.3"
    )
    speed.add_argument(
        "--measured", type=Path, metavar="RUN", help="use the speed of this run, on such GPUs (default: --run)"
    )
    parser.add_argument(
        "--caption-tokens",
        type=float,
        metavar="N",
        help="mean tokens per caption, including start and end of text (default: 25, or the mean of --run so far)",
    )
    parser.add_argument("--candidates", action="store_true", help="list all candidates")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything to a file, not rounded; - prints it instead"
    )
    add_overrides(parser)
    parser.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> int:
    from growclip_ds.costs.making import Request, make_plan
    from growclip_ds.costs.text import nothing_left, plan_text
    from growclip_ds.monitor.tables import print_plainly

    check_place(options.json)
    config, run = _what_to_plan(options)
    request = Request(
        deepspeed=options.deepspeed_config,
        hardware=options.hardware,
        gpus=options.gpus,
        throughput=options.throughput,
        utilisation=options.utilisation,
        measured=options.measured,
        caption_tokens=options.caption_tokens,
    )
    plan = make_plan(config, request, run)
    for warning in config.warnings():
        print(f"growclip: note: {warning}", file=sys.stderr)
    if options.json is not None:
        put_json(options.json, plan.to_json())
    if options.json == STANDARD_OUTPUT:
        return 0
    if plan.steps_left:
        print_plainly(plan_text(plan, options.candidates))
    else:
        print(nothing_left(plan))
    return 0


def _what_to_plan(options: argparse.Namespace) -> tuple[Config, BegunRun | None]:
    """The configuration, and the run whose rest to plan; None: plan a new run."""
    from growclip_ds.config.config import load_config

    if options.begun is None:
        if options.config is None:
            raise InputError("name what to plan: --config FILE for a new run, or --run RUN for one that has started")
        return load_config(options.config, options.overrides), None
    if options.config is not None:
        raise InputError(
            f"--run {options.begun} is planned from its own configuration, and --config {options.config} is that of a "
            "new run: leave one of them out"
        )
    from growclip_ds.costs.begun import BegunRun

    run = BegunRun(options.begun)
    return run.config(options.overrides), run
