"""`growclip plan`: what a run will cost, before it is started."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from growclip_ds.cli.output import STANDARD_OUTPUT, check_place, put_json

if TYPE_CHECKING:
    from growclip_ds.config.config import Config

_CAPTION_TOKENS = 25  # English captions have about as many, start and end of text included


def add_plan_command(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.description = (
        "Says what a run will cost before it is started: of every growth step the candidates with their parameters and "
        "operations, memory and communication at ZeRO 1, 2 and 3, what fits on a GPU, and device hours. Which "
        "candidates will be selected is not known, so a run lies between its cheapest and its dearest path. Needs "
        "neither the data nor a GPU."
    )
    parser.epilog = (
        "Examples:\n\n"
        "  growclip plan --config configs/cc12m.yaml --deepspeed_config ds_configs/zero2.json --gpus 16 "
        "--hardware configs/hardware/h100-80.yaml\n"
        "  growclip plan --config configs/cc12m.yaml --gpus 16 --throughput 20000 data.subsets.0.samples=3000000"
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="the run, such as configs/cc12m.yaml")
    parser.add_argument(
        "--deepspeed_config",
        metavar="FILE",
        help="how DeepSpeed trains it, such as ds_configs/zero2.json (default: stage 2 in fp32, buckets of 25 million)",
    )
    parser.add_argument("--hardware", metavar="FILE", help="the GPU, such as configs/hardware/h100-80.yaml")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="GPUs of the run")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument(
        "--throughput",
        type=float,
        metavar="PAIRS/S",
        help="that you have measured or assume, of all GPUs together, of the model of growth step 1",
    )
    speed.add_argument(
        "--utilisation", type=float, metavar="SHARE", help="of the peak of --hardware, such as 0.3, that you assume"
    )
    speed.add_argument("--measured", type=Path, metavar="RUN", help="a run on such GPUs, whose speed to take")
    parser.add_argument(
        "--caption-tokens",
        type=float,
        default=float(_CAPTION_TOKENS),
        metavar="N",
        help="mean tokens of a caption, start and end of text included",
    )
    parser.add_argument("--candidates", action="store_true", help="list all candidates, not only some")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything to a file, not rounded; - prints it instead"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings to change, as in YAML")
    parser.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> int:
    from growclip_ds.config.config import load_config
    from growclip_ds.costs.making import Request, make_plan
    from growclip_ds.costs.text import plan_text
    from growclip_ds.monitor.tables import print_plainly

    check_place(options.json)
    config: Config = load_config(options.config, options.overrides)
    request = Request(
        deepspeed=options.deepspeed_config,
        hardware=options.hardware,
        gpus=options.gpus,
        throughput=options.throughput,
        utilisation=options.utilisation,
        measured=options.measured,
        caption_tokens=options.caption_tokens,
    )
    plan = make_plan(config, request)
    for warning in config.warnings():
        print(f"growclip: note: {warning}", file=sys.stderr)
    if options.json is not None:
        put_json(options.json, plan.to_json())
    if options.json != STANDARD_OUTPUT:
        print_plainly(plan_text(plan, options.candidates))
    return 0
