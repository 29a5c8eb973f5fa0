"""`growclip report`: compare runs in tables and figures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from growclip_ds.cli.output import STANDARD_OUTPUT, check_place, put_json


def add_report_command(parser: argparse.ArgumentParser) -> None:
    """Adds the description and arguments to the command's parser."""
    parser.description = (
        "Reports the results and costs of runs in the form of the paper's tables: accuracy of every growth step on "
        "every set, methods side by side (runs that differ only in their seed as mean and standard deviation), "
        "ablations, growth of one dimension, cost in FLOPs, pairs and device hours; with figures of accuracy over "
        "training and of how the models grew. Unfinished runs are reported as far as they got."
    )
    parser.epilog = (
        "Examples:\n\n"
        "  growclip report runs/mine --output runs/mine/report\n"
        "  growclip report runs/growclip-0 runs/growclip-1 runs/tfs-0 runs/tfs-1 --output report --json report.json"
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs (--output-dir of training)")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for report.md, report.html and the figures"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the tables' data, unrounded, to a file; - prints it"
    )
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from growclip_ds.reporting import make_report, read_runs, write_report

    check_place(options.json)
    report = make_report(read_runs(options.runs))
    for note in report.notes:
        print(f"growclip: note: {note}", file=sys.stderr)
    written = write_report(report, options.output)
    if options.json is not None:
        put_json(options.json, report.to_json())
        written.append(options.json)
    if options.json != STANDARD_OUTPUT:
        print(*written, sep="\n")
    return 0
