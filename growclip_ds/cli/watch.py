"""`growclip watch`: check a run's data and curves periodically, and submit the next growth step when it is due."""

from __future__ import annotations

import argparse
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from growclip_ds.errors import InputError
from growclip_ds.run.finished import is_step_finished
from growclip_ds.run.submissions import Submissions

SUBMIT = "slurm/grow_run.sh"


class _Look(NamedTuple):
    """The outcome of one check: a message, an exit code, and whether there is nothing more to wait for."""

    said: str
    code: int = 0
    is_end: bool = False


def add_watch_command(parser: argparse.ArgumentParser) -> None:
    """Adds the description and arguments to the command's parser."""
    parser.description = (
        "Checks periodically whether a run's next growth step is due: its data subset is in the list, and the data has "
        "grown enough, or the loss of the last step has plateaued. Then it submits the step, once. If the step's job "
        "ends without finishing it, the watch says so (with --once, by exit code 1); fixing and resubmitting it is up "
        "to you. Arguments after -- go to slurm/grow_run.sh: NAME=value, section.key=value, sbatch options."
    )
    parser.epilog = (
        "Examples:\n\n"
        "  growclip watch --config configs/mine.yaml --output-dir runs/mine --dry-run\n"
        "  growclip watch --config configs/mine.yaml --output-dir runs/mine --plateau 0.01 -- --nodes=4"
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="the run's configuration, such as configs/cc12m.yaml"
    )
    parser.add_argument("--output-dir", required=True, type=Path, metavar="DIR", help="the run's folder")
    parser.add_argument(
        "--growth", type=float, default=1.5, metavar="X", help="minimum growth of the data, N^t/N^{t-1} (default: 1.5)"
    )
    parser.add_argument(
        "--plateau",
        type=float,
        metavar="SHARE",
        help="also submit with less growth, if the loss fell by no more than this share from the third to the last "
        "quarter of the last step's training (default: never)",
    )
    parser.add_argument(
        "--every", type=float, default=300, metavar="SECONDS", help="time between checks (default: 300)"
    )
    parser.add_argument("--once", action="store_true", help="check once, and submit if a step is due")
    parser.add_argument("--dry-run", action="store_true", help="check once, and submit nothing")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="arguments of slurm/grow_run.sh, after --")
    parser.set_defaults(run=_watch)


def _watch(options: argparse.Namespace) -> int:
    if not (options.growth >= 1 and 0 < options.every < math.inf):  # written so that NaN fails too
        raise InputError("--growth must be at least 1, and --every a number above 0")
    if options.plateau is not None and not 0 <= options.plateau < 1:
        raise InputError(f"--plateau is a share of the loss, such as 0.01, not {options.plateau:g}")
    for word in options.arguments:
        if word.startswith(("CONFIG=", "RUN_DIR=")):
            raise InputError(f"{word} contradicts --config and --output-dir, which say it already: leave it out")
    submissions = Submissions(options.output_dir)
    with submissions.alone():
        said = ""
        while True:
            try:
                now = _look(options, submissions)
            except InputError as error:
                if options.once or options.dry_run:
                    raise
                now = _Look(f"error: {error}")  # perhaps temporary: a list being edited, or Slurm not responding
            if now.said != said:
                print(now.said, flush=True)
                said = now.said
            if options.once or options.dry_run or now.is_end:
                return now.code
            time.sleep(options.every)


def _look(options: argparse.Namespace, submissions: Submissions) -> _Look:
    """Checks once, and submits the next growth step if it is due."""
    from growclip_ds.config.config import load_config
    from growclip_ds.run.folder import RunFolder
    from growclip_ds.run.watch import GrowthRule, decide

    overrides = [word for word in options.arguments if not word.startswith("-") and "." in word.partition("=")[0]]
    config = load_config(options.config, overrides)
    decision = decide(config, RunFolder(options.output_dir), GrowthRule(options.growth, options.plateau))
    if decision.step is None:
        return _Look(decision.reason, is_end=True)
    step = f"growth step {decision.step}"
    if before := submissions.read().get(decision.step):
        if submissions.has_job(decision.step) is not False:
            return _Look(f"{step} is submitted and not finished: {before}")
        if is_step_finished(options.output_dir, decision.step):  # it has finished since the decision
            return _look(options, submissions)
        log = submissions.log(decision.step)
        return _Look(f"{step}'s job has ended without finishing it: see {log}; fix it and run {SUBMIT}", code=1)
    if not decision.is_due:
        return _Look(f"{step} {decision.reason}")
    command = [SUBMIT, "ONE_AT_A_TIME=1", f"CONFIG={options.config}", f"RUN_DIR={options.output_dir}"]
    command += options.arguments
    if options.dry_run:
        return _Look(f"{step} is due: {decision.reason}; would run: {shlex.join(command)}")
    said = _submit(command, step)
    submissions.add(decision.step, said)
    print(f"{step} is due: {decision.reason}", file=sys.stderr, flush=True)
    return _Look(said)


def _submit(command: Sequence[str], step: str) -> str:
    """Runs slurm/grow_run.sh; returns what it printed.

    Raises:
        InputError: the script cannot be run, or did not submit the step.
    """
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        raise InputError(f"{SUBMIT} cannot be run ({error.strerror}); run it from the project's folder") from None
    if result.returncode:
        raise InputError(f"{step} is due, but was not submitted: {SUBMIT} ended with {result.returncode}")
    return result.stdout.strip()
