"""`growclip inspect`: what a checkpoint holds, or what a run has come to."""

from __future__ import annotations

import argparse
from pathlib import Path

from growclip_ds.errors import InputError


def add_inspect_command(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.description = (
        "Shows what a checkpoint holds: its architecture drawn, sizes, parameters part by part. Of a run also which "
        "phases are finished, how the model grew from step to step, and which tensors are new or wider. Reads only "
        "indexes, unless it is asked to verify."
    )
    parser.epilog = (
        "Examples:\n\n"
        "  growclip inspect runs/mine\n"
        "  growclip inspect runs/mine/step_2/train --verify --png architecture.png"
    )
    parser.add_argument("path", type=Path, metavar="CHECKPOINT|RUN", help="a checkpoint, a phase of a run, or a run")
    parser.add_argument("--verify", action="store_true", help="read every tensor and compare its checksum")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the architecture (of a run: the newest) there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file")
    parser.set_defaults(run=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    from growclip_ds.files import write_json
    from growclip_ds.inspection import Inspected, inspect
    from growclip_ds.inspection_text import checkpoint_text, run_text, save_png
    from growclip_ds.monitor.tables import print_plainly

    found = inspect(options.path, options.verify)
    is_checkpoint = isinstance(found, Inspected)
    print_plainly(checkpoint_text(found) if is_checkpoint else run_text(found))
    try:
        if options.png is not None:
            if not is_checkpoint and not found.models:
                raise InputError(f"{options.path}: no growth step has a trained model yet that --png could draw")
            save_png((found if is_checkpoint else found.models[max(found.models)]).model, options.png)
        if options.json is not None:
            write_json(options.json, found.to_json())
    except (OSError, ValueError) as error:  # an unknown ending is matplotlib's ValueError
        raise InputError(f"{options.png or options.json} cannot be written: {error}; name another place") from error
    return 0
