"""The layouts of sampled subnets inside shards are found once."""

from __future__ import annotations

from typing import cast
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

from growclip_ds.optim import Lamb
from growclip_ds.optim.subnet import REMEMBERED
from growclip_ds.optim.zero_shards import FlatShard, Piece, Segment

SHARDS = 3  # as of ZeRO 3's sub-groups


def test_so_many_subnets_are_remembered_of_each_shard() -> None:
    optimizer = Lamb([nn.Parameter(torch.zeros(SHARDS * REMEMBERED))])
    group, device = cast(dist.ProcessGroup, None), torch.device("cpu")
    segments = [Segment(f"weight {i}", (REMEMBERED,), (Piece(0, 0, REMEMBERED),)) for i in range(SHARDS)]
    optimizer.shards = [FlatShard(torch.zeros(REMEMBERED), (segment,), group, 0, device) for segment in segments]
    optimizer.steps = {segment.name: 0 for segment in segments}
    with mock.patch.object(optimizer, "_find_active", wraps=optimizer._find_active) as find:
        for _ in range(2):
            for size in range(1, REMEMBERED + 1):
                optimizer.set_active({segment.name: (size,) for segment in segments})
                for shard in optimizer.shards:
                    (region,) = optimizer._active_tensors(shard).regions.regions
                    assert region.spans[0].columns == size
        assert find.call_count == SHARDS * REMEMBERED
        optimizer.set_active(None)
        optimizer._active_tensors(optimizer.shards[0])
    assert len(optimizer._known) == SHARDS * REMEMBERED
