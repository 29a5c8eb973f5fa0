"""Ranks that start together wait minutes for each other, not the hours that a collective of theirs may take later."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from growclip_ds.errors import InputError

JOIN_MINUTES = 15.0  # covers imports from a slow file system that all machines share
_PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextlib.contextmanager
def wait_for_all_ranks() -> Iterator[None]:
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
            f"the {size} ranks did not all come within {JOIN_MINUTES:g} minutes, or one has ended "
            f"({str(error).splitlines()[0]}); the output of the others says why"
        ) from error
    yield


def _sign(rank: int) -> str:
    return f"growclip/joined/{rank}"
