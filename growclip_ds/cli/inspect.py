"""`growclip inspect`: show what a checkpoint contains, or the state of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from growclip_ds.cli.output import STANDARD_OUTPUT, check_place, put_json
from growclip_ds.errors import InputError


def add_inspect_command(parser: argparse.ArgumentParser) -> None:
    """Adds the description and arguments to the command's parser."""
    parser.description = (
        "Shows what a checkpoint or a model in Hugging Face format contains: a drawing of its architecture, its sizes, "
        "and the parameters of each part. For a run, also the state of each phase, how the model grew from step to "
        "step, and which tensors are new or wider. Reads only indexes, unless --verify is given."
    )
    parser.epilog = (
        "Examples:\n\n"
        "  growclip inspect runs/mine\n"
        "  growclip inspect runs/mine/step_2/train --verify --png architecture.png\n"
        "  growclip inspect exported/mine --json -"
    )
    parser.add_argument(
        "path", type=Path, metavar="MODEL", help="a run, a phase of one, a checkpoint, or an exported model or CLIP"
    )
    parser.add_argument("--verify", action="store_true", help="read every tensor and verify its checksum")
    parser.add_argument(
        "--png", type=Path, metavar="FILE", help="draw the architecture (for a run: the newest) into a PNG file"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file; - prints it instead")
    parser.set_defaults(run=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    from growclip_ds.inspection.inspection import inspect
    from growclip_ds.inspection.runs import InspectedRun
    from growclip_ds.inspection.text import checkpoint_text, run_text, save_png
    from growclip_ds.monitor.tables import print_plainly

    for place in (options.png, options.json):
        check_place(place)
    if options.png is not None and options.png.suffix.lower() != ".png":
        raise InputError(f"--png {options.png}: name a file that ends in .png")
    found = inspect(options.path, options.verify)
    newest = found.newest if isinstance(found, InspectedRun) else found
    if options.png is not None:
        if newest is None:
            raise InputError(f"{options.path}: no growth step has weights yet for --png to draw")
        save_png(newest.model, options.png)
    if options.json is not None:
        put_json(options.json, found.to_json())
    if options.json != STANDARD_OUTPUT:
        print_plainly(run_text(found) if isinstance(found, InspectedRun) else checkpoint_text(found))
    return 0
