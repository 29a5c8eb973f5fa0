"""Trains a GrowCLIP through its growth steps.

deepspeed train.py --deepspeed_config ds_configs/zero2.json --config configs/cc12m.yaml [section.key=value ...]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its name before torch 2.9
        # Allocations vary in size with batches, subnets and engines. torch reads this at its first GPU allocation.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    # Imported here, since data loading workers import this file too.
    from growclip_ds.config.config import load_config
    from growclip_ds.config.deepspeed import load_deepspeed_config, resolve
    from growclip_ds.distributed.rendezvous import init_distributed, leave_distributed
    from growclip_ds.distributed.watchdog import INPUT_ERROR, Watchdog, start_watchdog
    from growclip_ds.errors import InputError
    from growclip_ds.pipeline.pipeline import prepare_growth
    from growclip_ds.signals import STOPPED, Stopped, StopRequest

    options = _parser().parse_intermixed_args(arguments)
    stop = StopRequest()
    try:
        method = [] if options.method is None else [f"method={options.method}"]
        config = load_config(options.config, [*options.overrides, *method])
        deepspeed_file = load_deepspeed_config(options.deepspeed_config)
        deepspeed = resolve(deepspeed_file, config, world_size=int(os.environ.get("WORLD_SIZE", "1")))
        init_distributed()
    except InputError as error:  # the same on every rank, unless files differ between machines
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            print(f"train.py: error: {error}", file=sys.stderr, flush=True)
        return INPUT_ERROR
    stop.install()
    watch, code = Watchdog(), 0
    try:
        watch = start_watchdog(60 * config.health.hang_minutes)
        output_dir = options.output_dir or Path("runs") / Path(options.config).stem
        prepare_growth(config, deepspeed, output_dir, options.growth_step, stop, watch).run()
    except Stopped:
        code = STOPPED
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"train.py: stopped on request; run the same command to resume (exit code {STOPPED})", flush=True)
    except BaseException as error:  # perhaps on this rank alone, with the others waiting for it
        watch.fail(error)
    watch.close()
    leave_distributed()
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a GrowCLIP through its growth steps. The same command resumes an interrupted run.",
        epilog="Rank and world size come from the environment, as set by the deepspeed launcher or torchrun. "
        "SIGTERM, SIGUSR1 and Ctrl-C end the run after the current iteration, with a checkpoint and exit code 75.",
    )
    parser.add_argument(
        "--deepspeed_config", required=True, metavar="FILE", help="DeepSpeed file: ZeRO stage, precision, offloading"
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="the run's configuration, such as configs/cc12m.yaml"
    )
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="the run's folder (default: runs/CONFIG)")
    parser.add_argument(
        "--method", metavar="NAME", help="growclip, tfs, twp, sap, msclip or nas (default: the configuration's)"
    )
    parser.add_argument("--growth-step", type=int, metavar="N", help="run only this growth step")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # LOCAL_RANK says the same
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings to override, as YAML values"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
