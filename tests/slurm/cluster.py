"""A real Slurm of two nodes on this machine: one controller, two slurmd, each with eight pretended GPUs.

One node has more processors than the other. Jobs are preempted with a grace time, but for those in partition `abrupt`.

Everything is in one folder, of which the socket's path may have 108 bytes, so it is a short one under /tmp.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
NODES = ("n1", "n2")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

CONFIGURATION = """\
ClusterName=two
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/munge
# A requeued job may start once its credential has expired: after two minutes, if it is not told at least 5 s.
AuthInfo=socket={root}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
KillWait=5
MinJobAge=86400
GresTypes=gpu
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=96 RealMemory=65536 Gres=gpu:8
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=64 RealMemory=65536 Gres=gpu:8
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=abrupt Nodes=n1,n2 PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=n1,n2 PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE State=UP
"""
ACTIVE = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED"}


def missing_programs() -> list[str]:
    """Of Slurm's programs those that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]


class Cluster:
    """A running Slurm. Every command is given its configuration; that of the machine, if it has one, is not touched."""

    def __init__(self, root: Path) -> None:
        self.root = root
        kept_back = ("SLURM_", "SBATCH_", "SRUN_", "RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "DS_", "OMP_", "TRITON_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(kept_back)}
        self.environment |= {"SLURM_CONF": str(root / "slurm.conf"), "PATH": PATH}

    def run(self, *command: str | Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the project's folder."""
        return subprocess.run(
            [str(word) for word in command],
            env=self.environment | environment,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=180,
            check=check,
        )

    def sbatch(self, *arguments: str | Path, **environment: str) -> int:
        """Submits a job; its own output, where the script names none, goes to the cluster's folder."""
        output = f"--output={self.root}/job-%j.out"
        return int(self.run("sbatch", "--parsable", output, *arguments, **environment).stdout)

    def job(self, number: int) -> dict[str, str]:
        """What `scontrol show job` says; values with spaces are whole."""
        text = self.run("scontrol", "show", "job", str(number)).stdout
        found = {}
        for line in text.splitlines():
            key, _, value = line.strip().partition("=")
            if key in ("Comment", "Command", "StdOut"):
                found[key] = value
            else:
                found |= dict(word.split("=", 1) for word in line.split() if "=" in word)
        return found

    def output(self, number: int) -> str:
        file = self.root / f"job-{number}.out"
        return file.read_text() if file.exists() else ""

    def wait(self, condition: Callable[[], bool], seconds: float = 180, what: str = "") -> None:
        """Waits for a condition.

        Raises:
            TimeoutError: with the queue.
        """
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                queue = self.run("squeue", "--states=all", "--format=%i %j %T %r %k").stdout
                raise TimeoutError(f"{what or condition} not within {seconds:.0f} s; the queue:\n{queue}")
            time.sleep(0.1)

    def wait_for_end(self, number: int, seconds: float = 180) -> str:
        """The state in which a job ended."""
        self.wait(lambda: self.job(number)["JobState"] not in ACTIVE, seconds, f"end of job {number}")
        return self.job(number)["JobState"]

    def processes(self, number: int | None = None) -> dict[int, str]:
        """Processes of a job, or of all of this cluster's jobs: by id, what they are."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                mine = f"SLURM_CONF={self.root / 'slurm.conf'}" in variables
                jobs = [variable.removeprefix("SLURM_JOB_ID=") for variable in variables if "SLURM_JOB_ID=" in variable]
                if mine and jobs and (number is None or str(number) in jobs):
                    words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    if any(words):  # else it has ended and waits to be reaped
                        found[int(folder.name)] = " ".join(words)
        return found


@contextlib.contextmanager
def two_nodes() -> Iterator[Cluster]:
    """Starts a cluster, and ends it with all that its jobs have left.

    Raises:
        RuntimeError: it does not start; with what its logs say.
    """
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    root.chmod(0o755)
    cluster = Cluster(root)
    try:
        _start(cluster)
        yield cluster
    finally:
        _stop(cluster)
        shutil.rmtree(root, ignore_errors=True)


def _start(cluster: Cluster) -> None:
    root = cluster.root
    for folder in ("state", "dev", *(f"spool/{node}" for node in NODES)):
        (root / folder).mkdir(parents=True)
    for place in range(8):
        (root / f"dev/gpu{place}").symlink_to("/dev/null")
    configuration = CONFIGURATION.format(root=root, user=getpass.getuser(), ports=_free_ports(3))
    (root / "slurm.conf").write_text(configuration)
    (root / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={root}/dev/gpu[0-7] Flags=nvidia_gpu_env\n")
    (root / "munge.key").write_bytes(secrets.token_bytes(1024))
    (root / "munge.key").chmod(0o400)
    (root / "hosts").write_text(Path("/etc/hosts").read_text() + "127.0.0.1 n1 n2\n")
    munge = [f"--{name}={root}/munge.{suffix}" for name, suffix in (("key-file", "key"), ("log-file", "log"))]
    munge += [f"--pid-file={root}/munge.pid", f"--seed-file={root}/munge.seed", f"--socket={root}/munge.socket"]
    _daemon(cluster, "munged", *munge)
    _daemon(cluster, "slurmctld")
    # In namespaces of their own the nodes have names that resolve; else the ranks are told where they meet.
    unshare = ["unshare", "--uts", "--mount"]
    apart = cluster.run(*unshare, "true", check=False).returncode == 0
    script = 'mount --bind "$1/hosts" /etc/hosts && hostname "$2" && exec slurmd -N "$2"'
    if not apart:
        cluster.environment["MASTER_ADDR"] = "127.0.0.1"
    for node in NODES:
        command = [*unshare, "bash", "-c", script, "_", str(root), node] if apart else ["slurmd", "-N", node]
        _daemon(cluster, *command)

    def up() -> bool:
        states = cluster.run(
            "sinfo", "--noheader", "--Node", "--partition=main", "--format=%T", check=False
        ).stdout.split()
        return states == ["idle"] * len(NODES)

    try:
        cluster.wait(up, 60, "both nodes idle")
    except TimeoutError as error:
        raise RuntimeError(f"Slurm does not start: {_errors(root)}") from error


def _daemon(cluster: Cluster, *command: str) -> None:
    result = cluster.run(*command, check=False)
    if result.returncode:
        raise RuntimeError(f"{command[0]} does not start: {result.stderr.strip() or _errors(cluster.root)}")


def _errors(root: Path) -> str:
    lines = [line for log in root.glob("slurm*.log") for line in log.read_text(errors="replace").splitlines()]
    return "\n".join([line for line in lines if "fatal" in line or "error" in line][-8:])


def _stop(cluster: Cluster) -> None:
    root = cluster.root
    with contextlib.suppress(subprocess.SubprocessError, TimeoutError):
        cluster.run("scancel", f"--user={getpass.getuser()}")
        cluster.wait(lambda: not cluster.run("squeue", "--noheader").stdout, 10)
    for process in cluster.processes():  # Slurm loses those whose parent has died
        _end(process)
    for file in (*(root / f"slurmd.{node}.pid" for node in NODES), root / "slurmctld.pid", root / "munge.pid"):
        if file.exists() and (process := int(file.read_text())) and _is_of(process, root):
            _end(process, signal.SIGTERM)
    for folder in Path("/proc").glob("[0-9]*"):  # a step's daemon that waits for its node's
        with contextlib.suppress(OSError):
            if (folder / "comm").read_text() == "slurmstepd\n" and _is_of(int(folder.name), root):
                _end(int(folder.name))


def _is_of(process: int, root: Path) -> bool:
    """Whether a process is one of this cluster's daemons: a stale file must not end a stranger."""
    folder = Path("/proc") / str(process)
    with contextlib.suppress(OSError):
        return str(root).encode() in (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
    return False


def _end(process: int, first: signal.Signals = signal.SIGKILL) -> None:
    for number in (first, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            if not Path(f"/proc/{process}/cmdline").exists() or not Path(f"/proc/{process}/cmdline").read_bytes():
                return
            time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
