"""`growclip`: what is done beside training, a subcommand each, of which `cli_*.py` have the arguments.

A subcommand is a function that adds its parser and one that runs it. What runs is imported there and not above, so that
`growclip --help` need not wait for torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from growclip_ds.cli_data import add_data_commands
from growclip_ds.cli_evaluate import add_evaluate_command
from growclip_ds.cli_steps import add_steps_command
from growclip_ds.cli_watch import add_watch_command
from growclip_ds.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code: 0, 2 where the input is at fault, or as the subcommand says."""
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
    parser.add_argument(
        "--local_rank", type=int, help=argparse.SUPPRESS
    )  # of the deepspeed launcher; LOCAL_RANK says it
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_data_commands(commands.add_parser("data", help="make, list and check data"))
    add_evaluate_command(commands.add_parser("evaluate", help="zero-shot classification and retrieval of a model"))
    add_steps_command(commands.add_parser("steps", help="list a run's growth steps and which are finished"))
    add_watch_command(commands.add_parser("watch", help="submit growth steps as data arrives"))
    return parser
