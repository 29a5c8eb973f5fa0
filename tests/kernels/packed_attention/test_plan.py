"""Every length is served by exactly one launch."""

from __future__ import annotations

import pytest
import torch

from growclip_kernels.packed_attention.plan import Looping, OnChip, on_chip_tiles, plan

CAPABILITIES = [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("max_seqlen", [1, 31, 32, 33, 77, 197, 256, 257, 1024])
def test_each_length_is_served_once(capability, dtype, max_seqlen):
    launches = plan(10_000_000, 3, max_seqlen, dtype, capability)
    for length in range(1, max_seqlen + 1):
        serving = [
            launch
            for launch in launches
            if length > launch.shorter and (isinstance(launch.tiles, Looping) or length <= launch.tiles.longest)
        ]
        assert len(serving) == 1, length


@pytest.mark.parametrize("length", [1, 32, 33, 197, 256, 257])
def test_equal_lengths_take_one_launch(length):
    (launch,) = plan(5 * length, 5, length, torch.bfloat16, (9, 0))
    assert launch.shorter < length
    assert isinstance(launch.tiles, OnChip) == (length <= 256)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_tiles_hold_all_keys_forwards_and_all_queries_backwards(capability):
    tiles = on_chip_tiles(capability)
    assert [t.longest for t in tiles] == sorted(t.longest for t in tiles)
    assert all(t.forward.keys == t.backward.queries == t.longest for t in tiles)


@pytest.mark.parametrize(("capability", "longest"), [((8, 0), 256), ((9, 0), 256), ((8, 6), 128), ((12, 1), 128)])
def test_devices_with_little_shared_memory_hold_shorter_sequences_whole(capability, longest):
    assert on_chip_tiles(capability)[-1].longest == longest
    assert isinstance(plan(5 * 197, 5, 197, torch.bfloat16, capability)[0].tiles, OnChip) == (longest > 197)
