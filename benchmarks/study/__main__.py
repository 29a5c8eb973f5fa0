"""Runs the study's missing runs, as many as fit into the given time.

python -m benchmarks.study --minutes 60

When the time is up, runs are stopped with a checkpoint, as any run is, and resume the next time. Finished runs are
stored in docs/study/, without weights. `growclip report docs/study/runs/* --output report` makes the tables.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study.results import Results
from benchmarks.study.runs import Plan, StudyRun
from benchmarks.study.tables import tables
from growclip_ds.config.config import load_config
from growclip_ds.errors import InputError
from growclip_ds.files import write_text
from growclip_ds.reporting.markdown import to_markdown
from growclip_ds.reporting.report import Report
from growclip_ds.run.folder import RunFolder
from growclip_ds.signals import STOPPED

ROOT = Path(__file__).resolve().parents[2]
SCENES = {
    "study": ["--samples", "6000", "--subsets", "3", "--size", "64"],
    "study_tuning": ["--samples", "1", "--subsets", "1", "--size", "64", "--seed", "1"],  # for its evaluation sets
}
POLL_SECONDS = 1.0
WRITTEN = (
    "Written by python -m benchmarks.study from the records in runs/: mean ± standard deviation (runs), in percent."
)


def main() -> int:
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))  # an exception, so that the runs are stopped too
    for name, size in SCENES.items():  # existing data sets are left alone
        subprocess.run(
            [sys.executable, "-m", "growclip_ds", "data", "scenes", f"data/{name}", *size], cwd=ROOT, check=True
        )
    try:
        study = Study(Plan(load_config(options.config), Results(options.results)), options)
        return study.run(time.monotonic() + 60 * options.minutes)
    except InputError as error:
        print(f"study: error: {error}", file=sys.stderr)
        return 2


@dataclass
class Study:
    """Executes the study's runs in parallel, each in one process with one thread.

    Attributes:
        plan: the runs of the study.
        options: the command-line options.
    """

    plan: Plan
    options: argparse.Namespace

    def run(self, end: float) -> int:
        """Executes runs until all are finished or the monotonic clock passes `end`; returns the exit code."""
        running: dict[StudyRun, subprocess.Popen[bytes]] = {}
        try:
            while time.monotonic() < end:
                for run in [run for run, process in running.items() if process.poll() is not None]:
                    self._finish(run, running.pop(run).returncode)
                missing = [run for run in self.plan.runs() if not self.plan.results.has(run.name)]
                if not missing:
                    print("study: all runs are finished", flush=True)
                    return 0
                for run in missing:
                    if len(running) < self.options.jobs and run not in running:
                        running[run] = self._start(run)
                time.sleep(POLL_SECONDS)
        finally:
            for process in running.values():
                process.send_signal(signal.SIGTERM)
            for run, process in running.items():
                process.wait()
                print(f"{run.name}: stopped", flush=True)
        return STOPPED

    def _start(self, run: StudyRun) -> subprocess.Popen[bytes]:
        folder = self.options.work / run.name
        files = ["--deepspeed_config", self.options.deepspeed_config, "--config", self.options.config]
        command = [sys.executable, "train.py", *files, "--output-dir", str(folder), *run.overrides]
        self.options.work.mkdir(parents=True, exist_ok=True)
        print(f"{run.name}: {' '.join(run.overrides)}", flush=True)
        environment = {"OMP_NUM_THREADS": "1"} | dict(os.environ)
        with self._log(run).open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def _finish(self, run: StudyRun, code: int) -> None:
        if code == STOPPED:
            return
        if code:
            raise InputError(f"{run.name} failed with exit code {code}; see {self._log(run)}")
        self.plan.results.keep(run.name, RunFolder(self.options.work / run.name))
        self.write_tables()
        print(f"{run.name}: finished", flush=True)

    def write_tables(self) -> None:
        """Writes the tables of the results so far, next to the folder of results."""
        report = Report("What the study found", [WRITTEN], [table for table in tables(self.plan) if table.rows], [])
        write_text(self.plan.results.path.parent / "tables.md", to_markdown(report))

    def _log(self, run: StudyRun) -> Path:
        return self.options.work / f"{run.name}.log"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time (default: no limit)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time (default: one per core)")
    parser.add_argument("--config", default="configs/study.yaml", help="configuration shared by all runs")
    parser.add_argument("--deepspeed_config", default="ds_configs/cpu.json")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "study", help="folder for unfinished runs")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "study" / "runs", help="folder for results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
