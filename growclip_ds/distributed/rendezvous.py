"""Rendezvous and shutdown of the ranks: a timeout of minutes at start-up, and of a day for later collectives."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.constants import default_pg_timeout
from torch.distributed.rendezvous import rendezvous

from growclip_ds.errors import InputError

# The others wait while rank 0 counts shards or trains a tokenizer. Time in which all ranks are suspended counts too,
# and gang scheduling suspends for hours. (The watchdog ends a run whose ranks fail, and one that hangs in training.)
COLLECTIVE_HOURS = 24
JOIN_MINUTES = 15.0  # allows for imports from a slow shared file system
_PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PORT_IN_USE = "EADDRINUSE"  # in torch's message


def init_distributed() -> None:
    """Joins the process group described by the launcher's environment, or uses an existing one.

    A process started without a launcher creates a group of size 1.

    Raises:
        InputError: several processes were started without RANK and WORLD_SIZE, MASTER_PORT is in use, not all ranks
            connect in time, the machine has fewer GPUs than ranks, or only some machines have GPUs.
    """
    if "RANK" not in os.environ:
        # Not SLURM_NTASKS, which is also set in a batch script, a single process.
        for variable in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
            if int(os.environ.get(variable, "1")) > 1:
                raise InputError(
                    f"{variable} says that this is one of {os.environ[variable]} processes, but RANK and WORLD_SIZE "
                    "are not set; start with deepspeed or torchrun, or set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR "
                    "and MASTER_PORT for each process"
                )
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    if "LOCAL_SIZE" in os.environ:  # the deepspeed launcher's name for LOCAL_WORLD_SIZE
        os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ["LOCAL_SIZE"])
    # DeepSpeed's all-reduce for inference on the CPU: if it finds a compiler, compiling it takes a minute and prints a
    # message. (Not on a GPU, where reading this dictionary probes every operator, with prints.)
    if get_accelerator().device_name() == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _take_device()
    try:
        with _wait_for_all_ranks():  # with a limit of minutes, not hours
            deepspeed.init_distributed(verbose=False, timeout=collective_limit())
    except dist.DistNetworkError as error:
        if _PORT_IN_USE not in str(error):
            raise
        raise InputError(
            f"port {os.environ['MASTER_PORT']} (MASTER_PORT) is in use on {socket.gethostname()}, perhaps by another "
            "run: pass another as --master_port to deepspeed or torchrun, or set MASTER_PORT"
        ) from error


def _take_device() -> None:
    """Selects this rank's GPU before any collective; otherwise NCCL would use the first GPU on every rank.

    Raises:
        InputError: on all ranks of a machine that has fewer GPUs than ranks.
    """
    accelerator, local_rank = get_accelerator(), int(os.environ.get("LOCAL_RANK", "0"))
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1))
    if accelerator.device_name() != "cpu" and (gpus := accelerator.device_count()) < ranks:
        raise InputError(
            f"{socket.gethostname()} has {ranks} ranks, but torch {torch.__version__} sees {gpus} GPUs there: start "
            "one rank per GPU; if there are enough GPUs, check the driver (nvidia-smi) and that torch is a CUDA build; "
            "DS_ACCELERATOR=cpu trains without GPUs"
        )
    accelerator.set_device(local_rank)


def collective_limit() -> datetime.timedelta:
    """The timeout of collectives; DeepSpeed's DEEPSPEED_TIMEOUT, in minutes, overrides it."""
    if "DEEPSPEED_TIMEOUT" in os.environ:
        return default_pg_timeout
    return datetime.timedelta(hours=COLLECTIVE_HOURS)


def leave_distributed() -> None:
    """Destroys the process group: if its threads ran until the interpreter exits, they might abort the process."""
    dist.destroy_process_group()


@contextlib.contextmanager
def _wait_for_all_ranks() -> Iterator[None]:
    """Waits until all ranks of the launcher's environment have connected, and keeps their rendezvous store alive until
    the process group, which uses it too, is created. Does nothing if there is a group already or only one rank.

    Needed because `init_process_group` has a single timeout, for the rendezvous and for collectives.

    Raises:
        InputError: not all ranks connected in time, the one that holds the store has ended, or only some have GPUs.
        DistNetworkError: this rank holds the store, and its port is in use.
    """
    if dist.is_initialized() or any(name not in os.environ for name in _PLACE) or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    size, limit = int(os.environ["WORLD_SIZE"]), datetime.timedelta(minutes=JOIN_MINUTES)
    try:
        store, rank, _ = next(rendezvous("env://", timeout=limit))
        # If rank 0 holds the store, it has waited for the others already; if torchrun's agent holds it, nobody has.
        # (When the agent restarts the ranks, the previous start's keys are still there, so nobody waits.)
        store.set(_sign(rank), f"{get_accelerator().device_name()} {socket.gethostname()}")
        signs = [_sign(other) for other in range(size)]
        store.wait(signs, limit)
        _require_one_kind_of_device({tuple(sign.decode().split()) for sign in store.multi_get(signs)})
    except dist.DistError as error:
        if _PORT_IN_USE in str(error):
            raise
        raise InputError(
            f"not all {size} ranks connected within {JOIN_MINUTES:g} minutes, or one has ended "
            f"({str(error).splitlines()[0]}); see the output of the other ranks"
        ) from error
    yield


def _require_one_kind_of_device(found: set[tuple[str, ...]]) -> None:
    """Checks that all ranks train on the same kind of device.

    DeepSpeed takes the CPU where it finds no GPU; in different backends, ranks would wait for each other for a day.

    Args:
        found: kind of device and name of machine, of every rank.

    Raises:
        InputError: on every rank, if only some machines have GPUs.
    """
    machines = sorted(machine for kind, machine in found if kind == "cpu")
    if machines and len(machines) < len(found):
        raise InputError(
            f"torch sees GPUs on other machines, but none on {', '.join(machines[:3])}{' …' * (len(machines) > 3)}: "
            "check the driver (nvidia-smi) there; to train without GPUs, set DS_ACCELERATOR=cpu on all"
        )


def _sign(rank: int) -> str:
    return f"growclip/joined/{rank}"
