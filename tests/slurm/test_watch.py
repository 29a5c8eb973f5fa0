"""`growclip watch` with a real Slurm: whatever comes between, a step is one job."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from growclip_ds.cli.program import main
from tests.pipeline_runs import write_data
from tests.slurm.cluster import Cluster
from tests.slurm.test_scripts import ROOT, finish


def test_a_step_becomes_one_job(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A watch sees data arrive and is killed; others come after it and beside it."""
    data, run, said = write_data(tmp_path), tmp_path / "a run", tmp_path / "said"
    config = yaml.safe_load((data / "config.yaml").read_text())
    arrived = config["data"]["subsets"]
    config["data"]["subsets"] = arrived[:1]
    (data / "config.yaml").write_text(yaml.safe_dump(config))
    finish(run, 1)
    watch = ["watch", "--config", str(data / "config.yaml"), "--output-dir", str(run)]
    program = [sys.executable, "-m", "growclip_ds", *watch]
    arguments = ["--", "DEVICE=cpu", f"PYTHON={sys.executable}", f"DS_CONFIG={data}/zero2.json", "--hold"]
    with said.open("w") as output:
        command = [*program, "--every", "0.2", *arguments]
        process = subprocess.Popen(command, stdout=output, cwd=ROOT, env=cluster.environment)
    try:
        cluster.wait(lambda: "growth step 2 waits for data: the list has 1 subsets\n" in said.read_text())
        beside = cluster.run(*program, "--once", *arguments, check=False)
        assert beside.returncode == 2
        assert "is being watched already" in beside.stderr
        config["data"]["subsets"] = arrived
        (data / "config.yaml").write_text(yaml.safe_dump(config))
        cluster.wait(lambda: "is submitted and not finished" in said.read_text())
    finally:
        process.kill()
        process.wait()
    job = re.search(r"^growth step 2: job (\d+)$", said.read_text(), re.MULTILINE)[1]
    assert f"growth step 2 is submitted and not finished: growth step 2: job {job}\n" in said.read_text()
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.environment[name])
    monkeypatch.chdir(ROOT)

    def look() -> tuple[int, str]:
        capfd.readouterr()
        code = main([*watch, "--once", *arguments])
        return code, capfd.readouterr().out

    # It was killed between the submission and its own record of it: the job is known by its name.
    (run / "slurm/watch.json").unlink()
    assert look() == (0, f"growth step 2: job {job}, submitted before\n")
    name = cluster.job(int(job))["JobName"]
    assert cluster.run("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%A").stdout.split() == [job]
    waits = f"growth step 2 is submitted and not finished: growth step 2: job {job}, submitted before\n"
    assert look() == (0, waits)
    cluster.run("scancel", job)
    cluster.wait_for_end(int(job))
    assert look() == (
        1,
        f"growth step 2's job has ended without finishing it: see {run}/slurm; fix it and run slurm/grow_run.sh\n",
    )
    finish(run, 2)
    assert look() == (0, "growth step 3 waits for data: the list has 2 subsets\n")
