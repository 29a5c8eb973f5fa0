"""The scripts for Slurm: what sbatch makes of them, what each rank is told, and what they say when something is wrong.

Where it does not matter what is trained, `stand_in` takes the place of train.py.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from growclip_ds.growth.phases import Phase
from growclip_ds.run.finished import is_step_finished
from growclip_ds.run.folder import RunFolder
from tests.pipeline_runs import write_data
from tests.slurm.cluster import NODES, Cluster

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
STEP, RUN, EVALUATE, TENSORBOARD = (f"slurm/{name}.sh" for name in ("grow_step", "grow_run", "evaluate", "tensorboard"))

# Runs the stand-in of train.py and of an evaluation, and all else with the real Python.
STAND_IN = """#!/usr/bin/env bash
if [[ $1 == train.py || ${{3:-}} == evaluate ]]; then exec {python} "{folder}/ranks.py" "$@"; fi
exec {python} "$@"
"""
# With BREAK_DOWN a rank ends badly when all is done. Else it is deaf for a while, as ranks are that import torch; then
# it waits to be told to stop. With CHECKPOINT it has written one by then. With LOSE rank 0 fails once that file is
# there.
RANKS = """
import os, pathlib, signal, sys, time
if "BREAK_DOWN" in os.environ:
    phase = pathlib.Path(sys.argv[sys.argv.index("--output-dir") + 1], "step_1/train")
    phase.mkdir(parents=True, exist_ok=True)
    (phase / "phase.json").write_text("{}")
    sys.exit(134)
time.sleep(float(os.environ.get("DEAF", 1.5)))
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda *_: sys.exit(75))
if "CHECKPOINT" in os.environ:
    checkpoints = pathlib.Path(sys.argv[sys.argv.index("--output-dir") + 1], "step_1/train/checkpoints")
    (checkpoints / "iteration_000000010").mkdir(parents=True, exist_ok=True)
print("listening", flush=True)
while "LOSE" in os.environ:
    time.sleep(0.1)
    if os.environ["RANK"] == "0" and os.path.exists(os.environ["LOSE"]):
        sys.exit(134)
time.sleep(int(os.environ.get("WAIT", 60)))
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run of three growth steps, in a folder whose name has a space."""
    folder = tmp_path / "a run"
    folder.mkdir()
    data = {"subsets": [{"name": f"s{i}", "shards": f"s{i}"} for i in (1, 2, 3)], "tokenizer": {"vocab_size": 300}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    return folder / "config.yaml"


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    folder = tmp_path / "python of a stand-in"
    folder.mkdir()
    (folder / "ranks.py").write_text(RANKS)
    (folder / "python").write_text(STAND_IN.format(python=sys.executable, folder=folder))
    (folder / "python").chmod(0o755)
    return folder / "python"


def finish(run: Path, step: int) -> None:
    """Makes a run look as if a growth step were finished."""
    phase = RunFolder(run).phase(step, Phase.TRAIN)
    phase.mkdir(parents=True)
    (phase / "phase.json").write_text("{}")


def submitted(output: str) -> list[int]:
    """The jobs that grow_run.sh names, the steps' one after the other."""
    return [int(job) for job in re.findall(r"^growth step \d+: job (\d+)", output, re.MULTILINE)]


def test_shellcheck_finds_nothing() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    command = [shellcheck, "--external-sources", "--source-path=SCRIPTDIR", *SCRIPTS, ROOT / ".ci/run"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_sixteen_ranks_get_what_they_need(cluster: Cluster, tmp_path: Path) -> None:
    """The script as it stands: two nodes of eight GPUs."""
    run = tmp_path / "run with a space"
    job = cluster.sbatch(STEP, "training.micro_batch_size=48", DRY_RUN="1", RUN_DIR=str(run), OMP_NUM_THREADS="")
    assert cluster.wait_for_end(job) == "COMPLETED", cluster.output(job)
    (log,) = (run / "slurm").glob("*.log")
    ranks = {}
    for line in log.read_text().splitlines():
        if line.startswith("rank: "):
            told, command = line.removeprefix("rank: ").split(" command: ")
            rank = dict(word.split("=") for word in told.split())
            ranks[int(rank["RANK"])] = rank
            assert command.endswith(
                "train.py --deepspeed_config ds_configs/zero2.json --config configs/cc12m.yaml --output-dir "
                f"{str(run).replace(' ', chr(92) + ' ')} --growth-step 1 training.micro_batch_size=48"
            )
    assert sorted(ranks) == list(range(16))
    for number, rank in ranks.items():
        assert rank["node"] == NODES[number // 8]
        assert rank["LOCAL_RANK"] == str(number % 8)
        assert (rank["WORLD_SIZE"], rank["LOCAL_WORLD_SIZE"]) == ("16", "8")
        assert rank["MASTER_ADDR"] == cluster.environment.get("MASTER_ADDR", NODES[0])
        assert rank["MASTER_PORT"] == str(20000 + job)
        assert rank["CUDA_VISIBLE_DEVICES"] == "0,1,2,3,4,5,6,7"  # NCCL's ranks of a node see each other's
        assert rank["GROWCLIP_CPUS_PER_RANK"] == "8"
        assert (rank["OMP_NUM_THREADS"], rank["DS_ACCELERATOR"], rank["HF_HUB_OFFLINE"]) == ("1", "cuda", "1")


def test_ranks_see_all_gpus_of_unequal_nodes(cluster: Cluster, tmp_path: Path) -> None:
    """Whole nodes, of which one has fewer processors; asked for in a way that gives each task one GPU."""
    options = ["--exclusive", "--ntasks-per-node=2", "--gpus-per-node=2", "--gpus-per-task=1", "--gpu-bind=single:1"]
    job = cluster.sbatch(*options, STEP, f"RUN_DIR={tmp_path}/run", "DRY_RUN=1")
    assert cluster.wait_for_end(job) == "COMPLETED", cluster.output(job)
    (log,) = (tmp_path / "run/slurm").glob("*.log")
    assert log.read_text().count(" CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 ") == 16


@pytest.mark.parametrize(("listed", "each"), [("128(x2),96", "12"), ("96,128(x3)", "12"), ("128(x2)", "16")])
def test_the_smallest_node_says_how_many_processors_a_rank_has(listed: str, each: str) -> None:
    job = {"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "128", "SLURM_JOB_CPUS_PER_NODE": listed, "MASTER_ADDR": "n1"}
    command = 'source slurm/common.sh && plan_ranks && echo "$CPUS_PER_TASK"'
    environment = os.environ | job | {"DEVICE": "cpu", "RANKS_PER_NODE": "8"}
    assert subprocess.check_output(["bash", "-c", command], env=environment, cwd=ROOT, text=True) == f"{each}\n"


@pytest.mark.parametrize(("given", "used"), [({}, "block:block"), ({"SLURM_DISTRIBUTION": "cyclic"}, "cyclic")])
def test_consecutive_ranks_share_a_socket(tmp_path: Path, given: dict[str, str], used: str) -> None:
    """As consecutive GPUs do, unless the job requests otherwise (sbatch --distribution)."""
    srun = tmp_path / "srun"
    srun.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    job = {
        "SLURM_JOB_NUM_NODES": "1",
        "RANKS_PER_NODE": "8",
        "CPUS_PER_TASK": "8",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | job | given
    command = ["bash", "-c", "source slurm/common.sh && run_ranks true"]
    assert f"--distribution={used}" in subprocess.check_output(command, env=environment, cwd=ROOT, text=True).split()


def test_any_number_of_nodes_and_gpus_and_who_pays(cluster: Cluster, tmp_path: Path) -> None:
    """Without STEP the first that is not finished."""
    finish(tmp_path / "run", 1)
    settings = {"RUN_DIR": str(tmp_path / "run"), "SBATCH_ACCOUNT": "project", "SBATCH_PARTITION": "urgent"}
    job = cluster.sbatch("--nodes=1", "--gpus-per-node=2", STEP, "DRY_RUN=1", **settings)
    assert cluster.wait_for_end(job) == "COMPLETED", cluster.output(job)
    (log,) = (tmp_path / "run/slurm").glob("*.log")
    assert log.read_text().count("WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 ") == 2
    assert log.read_text().count("--growth-step 2") == 2
    assert (cluster.job(job)["Account"], cluster.job(job)["Partition"]) == ("project", "urgent")


def test_site_settings_reach_every_rank(cluster: Cluster, tmp_path: Path, config: Path) -> None:
    """A project of its own, where slurm/site.sh names a container; told of by a relative path."""
    home = tmp_path / "a home"
    (home / "slurm").mkdir(parents=True)
    for name in ("train.py", "growclip_ds", "ds_configs", *(f"slurm/{script.name}" for script in SCRIPTS)):
        (home / name).symlink_to(ROOT / name)
    (home / ".venv").symlink_to(sys.prefix)
    (home / "slurm/site.sh").write_text("CONTAINER=(env INSIDE=1)\nexport NCCL_DEBUG=INFO\n")
    job = cluster.sbatch(
        "--gpus-per-node=1",
        "--export=ALL",
        STEP,
        f"CONFIG={config}",
        f"RUN_DIR={tmp_path}/run",
        "DRY_RUN=1",
        GROWCLIP_HOME=os.path.relpath(home, ROOT),
    )
    assert cluster.wait_for_end(job) == "COMPLETED", cluster.output(job)
    (log,) = (tmp_path / "run/slurm").glob("*.log")
    python = str(home / ".venv/bin/python").replace(" ", "\\ ")
    assert log.read_text().count(f"command: env INSIDE=1 {python} train.py") == 2


def test_shards_are_copied_before_the_ranks_begin(cluster: Cluster, tmp_path: Path) -> None:
    data, disk = write_data(tmp_path), tmp_path / "local disk"
    settings = [f"CONFIG={data}/config.yaml", f"RUN_DIR={tmp_path}/run", "STAGE=1", f"STAGE_DIR={disk}", "DRY_RUN=1"]
    job = cluster.sbatch("--gres=gpu:1", STEP, *settings)  # while SLURM_GPUS_PER_NODE is the script's
    assert cluster.wait_for_end(job) == "COMPLETED", cluster.output(job)
    (log,) = (tmp_path / "run/slurm").glob("*.log")
    assert log.read_text().count("1 shards, ") == 2  # of the first growth step, once a node
    assert log.read_text().count(f"data.staged={tmp_path}/local\\ disk") == 2
    assert len(list(disk.rglob("*.tar"))) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"CONFIG": "none.yaml"}, "there is no none.yaml: set CONFIG"),
        ({"DS_CONFIG": "none.json"}, "there is no none.json: set DS_CONFIG"),
        ({"RUN_DIR": "/sys/growclip"}, "the run's folder cannot be written: RUN_DIR=/sys/growclip"),
        ({"PYTHON": "/none/bin/python"}, "there is no /none/bin/python: install the project"),
        ({"PYTHON": "/usr/bin/false"}, "/usr/bin/false does not run"),
        ({"DEVICE": "tpu"}, "DEVICE must be gpu or cpu, not tpu"),
        ({"STEP": "last"}, "STEP must be the number of a growth step, not last"),
        ({"RANKS_PER_NODE": "0"}, "the job has no GPUs"),
        ({"GROWCLIP_HOME": "/none"}, "there is no /none/slurm/common.sh: submit from the project's folder"),
    ],
)
def test_what_is_wrong_is_one_line(cluster: Cluster, tmp_path: Path, settings: dict[str, str], message: str) -> None:
    settings = {"RUN_DIR": str(tmp_path / "run")} | settings
    job = cluster.sbatch(STEP, **settings)
    assert cluster.wait_for_end(job) == "FAILED"
    assert cluster.job(job)["ExitCode"] == "2:0"
    lines = cluster.output(job).splitlines()
    errors = [line for line in lines if line.startswith(f"{STEP}: error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    if "GROWCLIP_HOME" not in settings:
        assert message in cluster.job(job)["Comment"]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (STEP, [], "this is a job: submit it with sbatch"),
        (EVALUATE, [], "this is a job: submit it with sbatch"),
        (TENSORBOARD, [], "RUN_DIR is not set"),
        (TENSORBOARD, ["RUN_DIR=none"], "there is no folder none"),
        (RUN, ["COLOUR=red"], "there is no variable COLOUR; there are CONFIG"),
        (RUN, ["CONFIG=none.yaml"], "there is no none.yaml: set CONFIG"),
        (RUN, ["RUN_DIR=/sys/growclip"], "the run's folder cannot be written: RUN_DIR=/sys/growclip"),
        (RUN, ["PYTHON={bare}", "RUN_DIR={run}"], "has no torch deepspeed growclip_ds: install the project there"),
        (RUN, ["growth.stepz=2", "RUN_DIR={run}"], "growth.stepz"),
        (RUN, ["--partition=none", "RUN_DIR={run}"], "growth step 1 was not submitted"),
        (RUN, ["--test-only", "RUN_DIR={run}"], "growth step 1 was not submitted, as sbatch gave it no number"),
        (RUN, ["--job-name=mine"], "a growth step is one job, known by its name: leave out --job-name=mine"),
        (RUN, ["-a1-2"], "a growth step is one job, known by its name: leave out -a1-2"),
    ],
)
def test_what_is_wrong_before_a_job_is_one_line(
    cluster: Cluster, tmp_path: Path, script: str, arguments: list[str], message: str
) -> None:
    bare = tmp_path / "python without packages"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    arguments = [argument.format(run=tmp_path / "run", bare=bare) for argument in arguments]
    result = cluster.run("bash", script, *arguments, check=False)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to evaluate: set RUN_DIR to a run, or MODEL to a checkpoint"),
        (["RUN_DIR=none"], "there is no none to evaluate"),
    ],
)
def test_what_is_wrong_with_an_evaluation_is_one_line(cluster: Cluster, arguments: list[str], message: str) -> None:
    job = cluster.sbatch(EVALUATE, *arguments)
    assert cluster.wait_for_end(job) == "FAILED"
    assert cluster.job(job)["ExitCode"] == "2:0"
    assert cluster.output(job) == f"{EVALUATE}: error: {message}\n"


@pytest.mark.parametrize("command", [RUN, f"{sys.executable} -m growclip_ds watch --once --output-dir"])
def test_a_run_on_a_read_only_disk(cluster: Cluster, config: Path, tmp_path: Path, command: str) -> None:
    run = tmp_path / "run"
    (run / "slurm").mkdir(parents=True)
    apart = ["unshare", "--mount", *(["--map-root-user"] if os.getuid() else [])]
    if cluster.run(*apart, "true", check=False).returncode:
        pytest.skip("a disk cannot be made read-only here: unshare is not permitted")
    words = [f"CONFIG={config}", f"RUN_DIR={run}"] if command == RUN else [run, "--config", config]
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
    result = cluster.run(*apart, "bash", "-c", script, "_", run, *command.split(), *words, check=False)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert str(run) in line
    assert "cannot be written" in line


def test_two_at_once_do_not_submit(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    (tmp_path / "run/slurm").mkdir(parents=True)
    with (tmp_path / "run/slurm/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = cluster.run(RUN, f"CONFIG={config}", f"RUN_DIR={tmp_path}/run", check=False)
    assert result.returncode == 2
    assert result.stderr == f"{RUN}: error: another {RUN} is submitting jobs for {tmp_path}/run; wait for it to end\n"


def test_a_disk_without_locks(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """Such as Lustre mounted without them: nobody else is submitting."""
    flock = tmp_path / "flock"
    flock.write_text("#!/bin/sh\necho 'flock: 9: Function not implemented' >&2\nexit 71\n")
    flock.chmod(0o755)
    path = f"{tmp_path}:{cluster.environment['PATH']}"
    result = cluster.run(RUN, f"CONFIG={config}", f"RUN_DIR={tmp_path}/run", check=False, PATH=path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"{tmp_path}/run/slurm/.lock cannot be locked (Function not implemented): mount the file system with" in line


def test_a_run_submitted_from_within_a_job(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """What that job asked for does not count for the other."""
    words = ["ONE_AT_A_TIME=1", "DRY_RUN=1", f"CONFIG={config}", f"RUN_DIR={tmp_path}/run"]
    options = ["--nodes=1", "--gpus-per-node=1", "--ntasks-per-node=1"]
    within = ["srun", "--ntasks=1", "--gpus=1", "--ntasks-per-gpu=1"]
    (job,) = submitted(cluster.run(*within, RUN, *words, *options).stdout)
    assert cluster.wait_for_end(job) == "COMPLETED", Path(cluster.job(job)["StdOut"]).read_text()
    (log,) = (tmp_path / "run/slurm").glob("*.log")
    assert log.read_text().count("WORLD_SIZE=1 LOCAL_WORLD_SIZE=1 ") == 1


def test_a_run_is_submitted_once(cluster: Cluster, config: Path, tmp_path: Path, stand_in: Path) -> None:
    run = tmp_path / "the run, 100 %"
    finish(run, 1)
    assert is_step_finished(run, 1)
    arguments = [f"CONFIG={config}", f"RUN_DIR={run}", f"PYTHON={stand_in}", "--hold"]
    first = cluster.run(RUN, "ONE_AT_A_TIME=1", *arguments).stdout
    assert first.startswith("growth step 2: job ")
    (two,) = submitted(first)
    both = submitted(cluster.run(RUN, *arguments).stdout)
    assert both[0] == two
    three = both[1]
    assert cluster.job(three)["Dependency"].startswith(f"afterok:{two}")
    again = cluster.run(RUN, *arguments).stdout
    assert again == f"growth step 2: job {two}, submitted before\ngrowth step 3: job {three}, submitted before\n"
    # Another run's jobs are not taken for this one's, though its folder has the same name.
    other = submitted(cluster.run(RUN, *arguments, f"RUN_DIR={tmp_path}/other/{run.name}").stdout)
    assert len(other) == 3
    assert not {two, three} & set(other)
    cluster.run("scancel", *map(str, (two, three, *other)))
    finish(run, 2)
    finish(run, 3)
    assert cluster.run(RUN, *arguments).stdout == f"all growth steps of {run} are finished\n"


def test_a_job_that_the_run_waits_for_does_not_break_its_chain(
    cluster: Cluster, config: Path, tmp_path: Path, stand_in: Path
) -> None:
    arguments = [f"CONFIG={config}", f"PYTHON={stand_in}"]
    other = submitted(cluster.run(RUN, *arguments, f"RUN_DIR={tmp_path}/other", "--hold").stdout)
    dependency = f"--dependency=afterok:{other[-1]}"
    jobs = submitted(cluster.run(RUN, *arguments, f"RUN_DIR={tmp_path}/run", dependency).stdout)
    waits_for = [cluster.job(job)["Dependency"].partition("(")[0] for job in jobs]
    assert waits_for == [f"afterok:{job}" for job in (other[-1], *jobs[:-1])]
    cluster.run("scancel", *map(str, (*other, *jobs)))


def test_a_job_that_is_still_ending_is_not_taken_for_one_that_will_run(
    cluster: Cluster, config: Path, tmp_path: Path, stand_in: Path
) -> None:
    squeue = tmp_path / "ending/squeue"
    squeue.parent.mkdir()
    squeue.write_text('#!/bin/sh\ncase "$*" in *format=%T*) echo COMPLETING ;; *) echo 17 ;; esac\n')
    squeue.chmod(0o755)
    path = f"{squeue.parent}:{cluster.environment['PATH']}"
    result = cluster.run(
        RUN, f"CONFIG={config}", f"RUN_DIR={tmp_path}/run", f"PYTHON={stand_in}", check=False, PATH=path
    )
    assert result.returncode == 2
    assert "error: job 17, of growth step 1, is still ending; run this again when" in result.stderr


def test_a_step_that_stops_too_often_ends(cluster: Cluster, config: Path, tmp_path: Path, stand_in: Path) -> None:
    """The request comes while ranks start up and do not hear it, and Slurm says that it cannot pass it on.

    The next job of the chain is not begun.
    """
    (tmp_path / "busy").mkdir()
    scancel, real = tmp_path / "busy/scancel", shutil.which("scancel", path=cluster.environment["PATH"])
    scancel.write_text(f'#!/bin/bash\n{real} "$@"\n[[ -e "$0.called" ]] || {{ touch "$0.called"; exit 1; }}\n')
    scancel.chmod(0o755)
    arguments = [f"CONFIG={config}", f"RUN_DIR={tmp_path}/run", f"PYTHON={stand_in}", "MAX_RESTARTS=0"]
    options = ["--gpus-per-node=1", "--ntasks-per-node=1"]
    path = f"{scancel.parent}:{cluster.environment['PATH']}"
    jobs = submitted(cluster.run(RUN, *arguments, *options, PATH=path, DEAF="3").stdout)
    cluster.wait(lambda: any("ranks.py" in words for words in cluster.processes(jobs[0]).values()), 120, "ranks")
    cluster.run("scancel", "--batch", "--signal=USR1", str(jobs[0]))
    assert cluster.wait_for_end(jobs[0]) == "FAILED"
    job = cluster.job(jobs[0])
    assert job["ExitCode"] == "75:0"
    assert "stopped as it was asked to" in job["Comment"]
    assert "MAX_RESTARTS=0" in job["Comment"]
    log = Path(job["StdOut"]).read_text()
    assert job["Comment"] in log
    assert "task 0: Exited with exit code 75" in log  # not by the signal itself
    assert [cluster.wait_for_end(later) for later in jobs[1:]] == ["CANCELLED", "CANCELLED"]


def test_a_preempted_step_is_queued_again(cluster: Cluster, config: Path, tmp_path: Path, stand_in: Path) -> None:
    """With time to stop, and without. A restart counts if the step has made no progress before it.

    An evaluation is requeued as well.
    """

    def log(partition: str) -> str:
        return "".join(file.read_text() for file in (tmp_path / partition / "slurm").glob("*.log"))

    def submit(partition: str, **environment: str) -> int:
        settings = [f"CONFIG={config}", f"RUN_DIR={tmp_path}/{partition}", f"PYTHON={stand_in}", "STEP=1"]
        options = [f"--partition={partition}", "--gpus-per-node=1", "--ntasks-per-node=1"]
        return cluster.sbatch(*options, STEP, *settings, "MAX_RESTARTS=0", WAIT="600", **environment)

    graceful, abrupt = submit("main", CHECKPOINT="1"), submit("abrupt")
    options = ["--gpus-per-node=1", "--ntasks-per-node=2"]
    (tmp_path / "evaluated").mkdir()
    settings = [f"RUN_DIR={tmp_path}/evaluated", f"PYTHON={stand_in}", "DEVICE=cpu"]
    evaluation = cluster.sbatch(*options, EVALUATE, *settings, WAIT="600")
    cluster.wait(lambda: all(log(one).count("listening") == 2 for one in ("main", "abrupt")), 120, "ranks")
    cluster.wait(lambda: "listening" in log("evaluated"), 120, "the evaluation")
    urgent = cluster.sbatch("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true")
    assert cluster.wait_for_end(urgent, 40) == "COMPLETED"  # before the grace time is over
    jobs = {"graceful": graceful, "abrupt": abrupt, "evaluation": evaluation}
    restarts = {name: cluster.job(job)["Restarts"] for name, job in jobs.items()}
    assert restarts == dict.fromkeys(jobs, "1"), {name: cluster.job(job) for name, job in jobs.items()}
    assert "growth step 1 was preempted, and is requeued" in log("main")
    assert "growth step 1 was ended by Slurm: cancelled, preempted" in log("abrupt")
    assert cluster.wait_for_end(abrupt) == "FAILED"
    assert "has made no progress in 1 restarts, more than MAX_RESTARTS=0" in cluster.job(abrupt)["Comment"]
    cluster.wait(lambda: "restart 1, 0 without progress" in log("main"), 60, "a restart that does not count")
    cluster.run("scancel", str(graceful), str(evaluation))
    assert [cluster.wait_for_end(job) for job in (graceful, evaluation)] == ["CANCELLED"] * 2


@pytest.mark.slow
def test_a_step_out_of_time_is_queued_again(cluster: Cluster, config: Path, tmp_path: Path, stand_in: Path) -> None:
    """The signal that the script asks Slurm for, some time before the limit."""
    settings = [f"CONFIG={config}", f"RUN_DIR={tmp_path}/run", f"PYTHON={stand_in}", "STEP=1"]
    options = ["--time=00:02:00", "--signal=B:USR1@90", "--gpus-per-node=1", "--ntasks-per-node=1"]
    job = cluster.sbatch(*options, STEP, *settings, WAIT="200")
    cluster.wait(lambda: cluster.job(job)["Restarts"] == "1", 120, "the job in the queue again")
    (log,) = (tmp_path / "run/slurm").glob("*.log")
    assert "growth step 1 stopped as it was asked to, and is requeued" in log.read_text()
    cluster.run("scancel", str(job))
    cluster.wait_for_end(job)


@pytest.mark.slow
def test_a_step_that_does_not_stop_in_time_is_queued_again(
    cluster: Cluster, config: Path, tmp_path: Path, stand_in: Path
) -> None:
    """Its ranks are deaf until Slurm kills them: no queueing again would end the chain."""
    arguments = [f"CONFIG={config}", f"RUN_DIR={tmp_path}/run", f"PYTHON={stand_in}", "MAX_RESTARTS=5"]
    options = ["--time=00:01:00", "--signal=B:USR1@30", "--gpus-per-node=1", "--ntasks-per-node=1"]
    jobs = submitted(cluster.run(RUN, *arguments, *options, DEAF="300").stdout)
    cluster.wait(lambda: cluster.job(jobs[0])["Restarts"] == "1", 180, "the job in the queue again")
    log = Path(cluster.job(jobs[0])["StdOut"]).read_text()
    assert "growth step 1 is out of time, and its ranks did not stop before, and is requeued" in log
    cluster.wait(lambda: cluster.job(jobs[0])["JobState"] == "RUNNING", 120, "the second start")
    assert [cluster.job(later)["JobState"] for later in jobs[1:]] == ["PENDING", "PENDING"]
    cluster.run("scancel", *map(str, jobs))
    cluster.wait_for_end(jobs[0])


@pytest.mark.slow
def test_a_step_whose_node_is_silent_is_queued_again(
    cluster: Cluster, config: Path, tmp_path: Path, stand_in: Path
) -> None:
    """A node dies; the other one's rank fails long before Slurm takes the node for dead."""
    arguments = [f"CONFIG={config}", f"RUN_DIR={tmp_path}/run", f"PYTHON={stand_in}", "MAX_RESTARTS=5"]
    options = ["--gres=gpu:1", "--ntasks-per-node=1"]  # while SLURM_GPUS_PER_NODE is the script's
    jobs = submitted(cluster.run(RUN, *arguments, *options, LOSE=str(tmp_path / "lost")).stdout)
    log = Path(cluster.job(jobs[0])["StdOut"])
    cluster.wait(lambda: log.exists() and log.read_text().count("listening") == 2, 120, "ranks")
    slurmd = int((cluster.root / "slurmd.n2.pid").read_text())
    os.kill(slurmd, signal.SIGSTOP)
    try:
        (tmp_path / "lost").touch()
        cluster.wait(lambda: cluster.job(jobs[0])["Restarts"] == "1", 240, "the job in the queue again")
    finally:
        os.kill(slurmd, signal.SIGCONT)
    assert "growth step 1 has lost a node, and is requeued" in log.read_text()
    assert [cluster.job(later)["JobState"] for later in jobs[1:]] == ["PENDING", "PENDING"]
    cluster.run("scancel", *map(str, jobs))
    cluster.wait_for_end(jobs[0])


def test_what_is_on_disk_counts(cluster: Cluster, config: Path, tmp_path: Path, stand_in: Path) -> None:
    """A rank that breaks down at its end does not undo a step; that it was finished before excuses nothing.

    Of two nodes that both answer, none is lost.
    """
    settings = [f"CONFIG={config}", f"RUN_DIR={tmp_path}/run", f"PYTHON={stand_in}", "STEP=1"]
    for end in ("COMPLETED", "FAILED"):
        job = cluster.sbatch("--gpus-per-node=1", "--ntasks-per-node=1", STEP, *settings, BREAK_DOWN="1")
        assert cluster.wait_for_end(job) == end
        code = "(but srun ended with code 134)" if end == "COMPLETED" else "(exit code 134)"
        assert code in cluster.job(job)["Comment"]


def test_tensorboard_prints_the_tunnel(cluster: Cluster, tmp_path: Path) -> None:
    """Started within another job, which came from another folder and asked for memory in its own way."""
    run = tmp_path / "a run"
    run.mkdir()
    within = ["srun", "--ntasks=1", "env", "SLURM_SUBMIT_DIR=/", "SLURM_MEM_PER_CPU=9", "SLURM_MEM_PER_NODE=9"]
    output = cluster.run(*within, TENSORBOARD, f"RUN_DIR={run}").stdout
    (job, port) = re.search(
        r"job (\d+) shows .*ssh -N -L 6006:127\.0\.0\.1:(\d+) -J \S+@\S+ \S+@n[12]", output, re.S
    ).groups()
    log = run / f"slurm/tensorboard-{job}.log"
    cluster.wait(lambda: f"http://127.0.0.1:{port}/" in log.read_text(), 120, "TensorBoard's own address")
    cluster.run("scancel", job)
    assert cluster.wait_for_end(int(job)) == "CANCELLED"
