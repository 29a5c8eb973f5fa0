"""`growclip steps`: list which growth steps of a run are finished, for scripts that start others. Imports no torch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from growclip_ds.cli.help import add_overrides
from growclip_ds.errors import InputError
from growclip_ds.run.finished import is_step_finished, steps_of_start


def add_steps_command(parser: argparse.ArgumentParser) -> None:
    """Adds the description and arguments to the command's parser."""
    parser.description = "Lists the growth steps of a run, one per line: its number, and whether it is finished."
    parser.epilog = (
        "Examples:\n\n"
        "  growclip steps --config configs/mine.yaml --output-dir runs/mine\n"
        "  growclip steps --config configs/mine.yaml --output-dir runs/mine --unfinished --json"
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="the run's configuration, such as configs/cc12m.yaml"
    )
    parser.add_argument("--output-dir", required=True, type=Path, metavar="DIR", help="the run's folder")
    parser.add_argument("--unfinished", action="store_true", help="print only the numbers of unfinished steps")
    parser.add_argument("--json", action="store_true", help="print a JSON list with an object per step")
    add_overrides(parser)
    parser.set_defaults(run=_steps)


def _steps(options: argparse.Namespace) -> int:
    from growclip_ds.config.config import load_config

    config = load_config(options.config, options.overrides)
    if options.output_dir.exists() and not options.output_dir.is_dir():
        raise InputError(f"{options.output_dir} is not a folder; name that of a run (--output-dir)")
    given = steps_of_start(config, options.output_dir)
    finished = {
        step: step <= given or is_step_finished(options.output_dir, step)
        for step in range(1, config.num_growth_steps + 1)
    }
    shown = [step for step in finished if not (options.unfinished and finished[step])]
    if options.json:
        print(json.dumps([{"step": step, "finished": finished[step]} for step in shown]))
        return 0
    for step in shown:
        print(step if options.unfinished else f"{step} {'finished' if finished[step] else 'unfinished'}")
    return 0
