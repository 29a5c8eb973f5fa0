"""`growclip watch` with a real Slurm: whatever comes between, a step is one job."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.pipeline_runs import write_data
from tests.slurm.cluster import Cluster


def test_a_step_becomes_one_job(cluster: Cluster, tmp_path: Path) -> None:
    data, run = write_data(tmp_path), tmp_path / "a run"
    watch = [sys.executable, "-m", "growclip_ds", "watch", "--config", data / "config.yaml", "--output-dir", run]
    arguments = ["--", "DEVICE=cpu", f"PYTHON={sys.executable}", f"DS_CONFIG={data}/zero2.json", "--hold"]
    first = cluster.run(*watch, "--once", *arguments).stdout
    found = re.fullmatch(r"growth step 1: job (\d+)\n", first)
    assert found, first
    again = cluster.run(*watch, "--once", *arguments).stdout
    assert again == f"growth step 1 is submitted and not finished: {first}"
    # It broke down between the submission and its own record of it: the job is known by its name.
    (run / "slurm/watch.json").unlink()
    assert cluster.run(*watch, "--once", *arguments).stdout == f"{first.strip()}, submitted before\n"
    name = cluster.job(int(found[1]))["JobName"]
    jobs = cluster.run("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%A").stdout
    assert jobs.split() == [found[1]]
    cluster.run("scancel", found[1])
