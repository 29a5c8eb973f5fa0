"""Rendezvous and shutdown of the ranks: a timeout of minutes at the start, of hours in collectives later."""

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

COLLECTIVE_HOURS = 2  # one rank may count shards or train a tokenizer for all
JOIN_MINUTES = 15.0  # covers imports from a slow file system that all machines share
_PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def init_distributed() -> None:
    """Joins the process group that the launcher's environment describes, or takes over the one that there is.

    A process that was started alone makes a group of its own.

    Raises:
        InputError: it is one of several, but the launcher did not say which, or others do not come; the machine has
            not a GPU for each of its ranks.
    """
    if "RANK" not in os.environ:
        # Not SLURM_NTASKS: what a job may start is told to the one process of its script too.
        for variable in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
            if int(os.environ.get(variable, "1")) > 1:
                raise InputError(
                    f"{variable} says that this is one of {os.environ[variable]} processes, but RANK and WORLD_SIZE "
                    "are not set; start with deepspeed or torchrun, or set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR "
                    "and MASTER_PORT for each process"
                )
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    if "LOCAL_SIZE" in os.environ:  # as the deepspeed launcher calls what it is to torchrun and slurm/rank.sh
        os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ["LOCAL_SIZE"])
    # An all-reduce for inference on the CPU, which DeepSpeed otherwise spends a minute to compile where it finds a
    # compiler, and announces with a print. (On a GPU the mere look at this has every operator probed, with prints.)
    if get_accelerator().device_name() == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _take_device()
    with _wait_for_all_ranks():  # not for hours
        deepspeed.init_distributed(verbose=False, timeout=collective_limit())


def _take_device() -> None:
    """Takes the GPU of this rank, before any collective: NCCL would take the first one on every rank.

    Raises:
        InputError: alike on all ranks of a machine that has fewer GPUs.
    """
    accelerator, local_rank = get_accelerator(), int(os.environ.get("LOCAL_RANK", "0"))
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1))
    if accelerator.device_name() != "cpu" and (gpus := accelerator.device_count()) < ranks:
        raise InputError(
            f"{socket.gethostname()} has {ranks} ranks, but torch {torch.__version__} sees {gpus} GPUs there: start a "
            "rank for each GPU; if there are as many, see to the driver (nvidia-smi) and that torch is CUDA's build; "
            "DS_ACCELERATOR=cpu trains without"
        )
    accelerator.set_device(local_rank)


def collective_limit() -> datetime.timedelta:
    """How long ranks wait for each other in a collective; DeepSpeed's DEEPSPEED_TIMEOUT, in minutes, overrides it."""
    if "DEEPSPEED_TIMEOUT" in os.environ:
        return default_pg_timeout
    return datetime.timedelta(hours=COLLECTIVE_HOURS)


def leave_distributed() -> None:
    """Leaves the process group in good order: its threads, ended by the interpreter's end, may abort the process."""
    dist.destroy_process_group()


@contextlib.contextmanager
def _wait_for_all_ranks() -> Iterator[None]:
    """Waits until all ranks of the launcher's environment are there, and keeps the key-value store by which they found
    each other until the group, which goes by it too, is made. Does nothing where a group is there or no other rank is.

    `init_process_group` has one time limit, for ranks that have not come and for collectives.

    Raises:
        InputError: they have not come in time, or the one that has the store has ended.
    """
    if dist.is_initialized() or any(name not in os.environ for name in _PLACE) or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    size, limit = int(os.environ["WORLD_SIZE"]), datetime.timedelta(minutes=JOIN_MINUTES)
    try:
        store, rank, _ = next(rendezvous("env://", timeout=limit))
        # Rank 0 has waited for the others already where the store is its own; torchrun's agent, who else has it, waits
        # for none. (When it starts ranks again, it has the last start's signs, and nobody waits.)
        store.set(_sign(rank), "")
        store.wait([_sign(other) for other in range(size)], limit)
    except dist.DistError as error:
        raise InputError(
            f"not all {size} ranks connected within {JOIN_MINUTES:g} minutes, or one has ended "
            f"({str(error).splitlines()[0]}); the output of the others says why"
        ) from error
    yield


def _sign(rank: int) -> str:
    return f"growclip/joined/{rank}"
