"""Growth steps as jobs of a real Slurm, one CPU rank on each of two nodes: interrupted, failing, cancelled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from growclip_ds.checkpoint.checkpoint import Checkpoint
from growclip_ds.growth.phases import Phase
from growclip_ds.run.folder import RunFolder
from tests.group import Groups
from tests.pipeline_runs import PHASES, grow, write_data
from tests.slurm.cluster import Cluster
from tests.slurm.test_scripts import EVALUATE, RUN, submitted

# Long enough to be interrupted in the middle.
OVERRIDES = ("epochs.first=20", "epochs.selected=10", "checkpoint.every_iterations=10")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data with a space"))


class Grown(NamedTuple):
    """A run of two growth steps as two jobs: the first was asked to stop, the second lost a node."""

    run: RunFolder
    jobs: list[int]
    alone: RunFolder  # the same without Slurm


@pytest.fixture(scope="module")
def grown(cluster: Cluster, data: Path, group: Groups, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    run, alone = (RunFolder(tmp_path_factory.mktemp("runs") / name) for name in ("a run", "alone"))
    jobs = grow_run(cluster, data, run, *OVERRIDES, "MAX_RESTARTS=0")  # what comes further may go on
    wait_for_line(cluster, jobs[0], "step 1/2 train: model")
    cluster.run("scancel", "--batch", "--signal=USR1", str(jobs[0]))
    wait_for_line(cluster, jobs[1], "step 2/2 train: model")
    cluster.wait(lambda: any(run.checkpoints(2, Phase.TRAIN).glob("iteration_*")), 120, "a checkpoint")
    cluster.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    cluster.wait(lambda: cluster.job(jobs[1])["Restarts"] == "1", 120, "the job without its node in the queue")
    cluster.wait(lambda: node_is_back(cluster), 120, "node n2 back")
    group(2).run(grow, data, alone.path, 2, None, OVERRIDES)  # meanwhile: Slurm lets some seconds pass by
    assert [cluster.wait_for_end(job, 300) for job in jobs] == ["COMPLETED"] * 2, log(cluster, jobs[1])
    return Grown(run, jobs, alone)


def grow_run(cluster: Cluster, data: Path, run: RunFolder, *arguments: str) -> list[int]:
    settings = [f"CONFIG={data}/config.yaml", f"DS_CONFIG={data}/zero2.json", f"RUN_DIR={run.path}", "DEVICE=cpu"]
    return submitted(cluster.run(RUN, *settings, *arguments).stdout)


def node_is_back(cluster: Cluster) -> bool:
    """Brings the second node back, which Slurm refuses while the job has not left it, and may have done by itself."""
    cluster.run("scontrol", "update", "NodeName=n2", "State=RESUME", check=False)
    return "State=DOWN" not in cluster.run("scontrol", "show", "node", "n2").stdout


def log(cluster: Cluster, job: int) -> str:
    file = Path(cluster.job(job)["StdOut"])
    return file.read_text() if file.exists() else ""


def wait_for_line(cluster: Cluster, job: int, text: str) -> None:
    cluster.wait(lambda: text in log(cluster, job), 300, f"{text!r} of job {job}")


def test_interrupted_jobs_end_with_the_weights_of_a_run_without_slurm(cluster: Cluster, grown: Grown) -> None:
    run, jobs, alone = grown
    for step, job in enumerate(jobs, start=1):
        assert cluster.job(job)["Restarts"] == "1"
        assert cluster.job(job)["Comment"].startswith(f"growth step {step} is finished")
        assert f"step {step}/2 train: resumes after iteration " in log(cluster, job)
    assert "stopped as it was asked to, and is requeued" in log(cluster, jobs[0])
    for place in PHASES:
        ours, theirs = Checkpoint(alone.weights(*place)), Checkpoint(run.weights(*place))
        assert ours.names == theirs.names
        assert all(torch.equal(ours.read(name), theirs.read(name)) for name in ours.names), place


def test_evaluation_of_a_run(cluster: Cluster, grown: Grown, tmp_path: Path) -> None:
    """On two ranks, the numbers that training reported."""
    run = grown.run
    settings = [f"RUN_DIR={run.path}", "DEVICE=cpu", "RANKS_PER_NODE=2"]
    job = cluster.sbatch("--gpus-per-node=0", EVALUATE, *settings, "--json", f"{tmp_path}/results.json")
    state = cluster.wait_for_end(job)
    assert state == "COMPLETED", (run.path / "slurm" / f"evaluate-{job}.log").read_text()
    found = json.loads((tmp_path / "results.json").read_text())
    reported = run.record(2, Phase.TRAIN).evaluation
    assert found["growth_step"] == 2
    assert found["results"] == [result.to_json() for result in reported]


def test_a_step_that_fails_ends_the_chain(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    jobs = grow_run(cluster, data, run, "evaluation.datasets=[nowhere/at/all]")
    assert [cluster.wait_for_end(job) for job in jobs] == ["FAILED", "CANCELLED"]
    job = cluster.job(jobs[0])
    assert job["ExitCode"] == "2:0"
    assert job["Comment"].startswith("growth step 1 failed: train.py: error: ")
    assert "nowhere/at/all" in job["Comment"]
    assert log(cluster, jobs[0]).count("train.py: error: ") == 2  # once for all ranks, and as the reason
    # Once mended, the same command submits both anew.
    again = grow_run(cluster, data, run, "--hold")
    assert len(again) == 2
    assert not set(again) & set(jobs)
    cluster.run("scancel", *map(str, again))


def test_a_cancelled_job_leaves_no_process(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    (job, _) = jobs = grow_run(cluster, data, run, "epochs.first=100000")
    wait_for_line(cluster, job, " samples/s ")
    assert len(cluster.processes(job)) > 6  # ranks and their workers among them
    cluster.run("scancel", str(job))
    assert [cluster.wait_for_end(one) for one in jobs] == ["CANCELLED", "CANCELLED"]
    cluster.wait(lambda: not cluster.processes(job), 60, "end of all processes")
    assert any(run.checkpoints(1, Phase.TRAIN).glob("iteration_*"))  # SIGTERM came before
