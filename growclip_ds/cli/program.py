"""The `growclip` command: everything but training, with one subcommand per file of this folder.

A subcommand consists of a function that adds its arguments and one that runs it. The latter imports what it needs, so
that `growclip --help` does not wait for torch.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from growclip_ds.cli.completion import add_completion_command
from growclip_ds.cli.data import add_data_commands
from growclip_ds.cli.evaluate import add_evaluate_command
from growclip_ds.cli.export import add_export_command
from growclip_ds.cli.help import Parser, Version
from growclip_ds.cli.init import add_init_command
from growclip_ds.cli.inspect import add_inspect_command
from growclip_ds.cli.plan import add_plan_command
from growclip_ds.cli.report import add_report_command
from growclip_ds.cli.steps import add_steps_command
from growclip_ds.cli.watch import add_watch_command
from growclip_ds.errors import InputError

_EPILOG = """\
Start training with train.py, from a checkout or a folder made by `growclip init`:

  deepspeed train.py --deepspeed_config ds_configs/zero2.json --config configs/mine.yaml --output-dir runs/mine

Examples:

  growclip data add data/mine.yaml first /data/first/*.tar
  growclip evaluate runs/mine --config configs/eval/paper.yaml --json results.json
  growclip COMMAND --help

Exit codes of growclip and of train.py:

  0    done
  1    a check failed, or an internal error
  2    the command line or a file is at fault; one line says what
  75   stopped on request (train.py): run the same command to resume
  130  interrupted with Ctrl-C; for train.py by the second one, as the first asks it to stop
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; the help lists the codes."""
    try:
        try:
            options = make_parser().parse_args(arguments)
            return options.run(options)
        finally:  # a failure to write at the exit of the process would go unreported
            sys.stdout.flush()
    except InputError as error:
        print(f"growclip: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("growclip: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `growclip … | head`: the reader has closed the pipe
        _leave_unwritten()
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"growclip: error: {error.filename or 'the output'} cannot be written: {error.strerror}", file=sys.stderr)
        _leave_unwritten()
        return 2


def _leave_unwritten() -> None:
    """Discards standard output's buffer, which Python would try to write again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="growclip",
        description="Contrastive language-image pre-training with models that grow with their data.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action=Version, help="show the version and exit")
    parser.add_argument(
        "--local_rank", type=int, help=argparse.SUPPRESS
    )  # passed by the deepspeed launcher, which also sets LOCAL_RANK
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_init_command(commands.add_parser("init", help="create a project folder"))
    add_data_commands(commands.add_parser("data", help="generate, list and check data"))
    add_plan_command(
        commands.add_parser("plan", help="estimate what a run will cost: memory, communication, device hours")
    )
    add_evaluate_command(commands.add_parser("evaluate", help="zero-shot classification and retrieval of a model"))
    add_report_command(commands.add_parser("report", help="compare runs in tables and figures"))
    add_inspect_command(commands.add_parser("inspect", help="show what a checkpoint contains, or how a run grew"))
    add_export_command(commands.add_parser("export", help="write a trained model as a Hugging Face folder"))
    add_steps_command(commands.add_parser("steps", help="list a run's growth steps, and which are finished"))
    add_watch_command(commands.add_parser("watch", help="submit growth steps as data arrives"))
    add_completion_command(commands.add_parser("completion", help="print shell completion"))
    return parser
