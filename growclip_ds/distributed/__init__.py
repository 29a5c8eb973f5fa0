"""Communication between ranks: collectives on torch.distributed, rendezvous, and the watchdog over all ranks."""

from growclip_ds.distributed.collectives import (
    OtherRankError,
    all_gather_object,
    all_reduce_sum,
    broadcast_object,
    in_lockstep,
    is_main,
    on_every_rank,
    on_main,
    ragged_all_gather,
    rank,
    world_size,
)

__all__ = [
    "OtherRankError",
    "all_gather_object",
    "all_reduce_sum",
    "broadcast_object",
    "in_lockstep",
    "is_main",
    "on_every_rank",
    "on_main",
    "ragged_all_gather",
    "rank",
    "world_size",
]
