"""Blocks cover the matrix once and take memory as the features do; every configuration is complete."""

from __future__ import annotations

import pytest
import torch

from growclip_kernels.contrastive import plan
from growclip_kernels.contrastive.configurations import configurations

SIZES = [(1, 1), (128, 128), (300, 300), (1536, 1536), (2048, 65536), (8192, 8192), (65536, 65536), (65537, 262144)]


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("d", [64, 80, 512, 768, 1024])
def test_memory_is_of_the_order_of_the_features(rows, columns, d):
    height, width = plan.score_block(rows, columns, d)
    assert height * width <= max(2 * columns * d, 128 * 128)
    height, width = plan.forward_block(rows, columns, d)
    tiles = {plan.tile("softmax", dtype, (9, 0), "fused") for dtype in (torch.bfloat16, torch.float32)}
    for tile in tiles:
        partials = height * -(-width // tile.columns) + -(-height // tile.rows) * width
        assert partials <= columns * d + 2 * columns


@pytest.mark.parametrize(("rows", "columns"), SIZES[:6])
@pytest.mark.parametrize("block", [(128, 256), (100, 7000), (1 << 20, 1 << 20)])
def test_blocks_cover_every_score_once(rows, columns, block):
    covered = list(plan.blocks(rows, columns, block))
    assert sum((r.stop - r.start) * (c.stop - c.start) for r, c in covered) == rows * columns
    assert len({(r.start, c.start) for r, c in covered}) == len(covered)
    assert all(r.stop - r.start <= block[0] and c.stop - c.start <= block[1] for r, c in covered)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("d", [64, 512])
def test_blocks_begin_where_vectors_are_aligned(rows, columns, d):
    for block, extent in zip(plan.score_block(rows, columns, d), (rows, columns), strict=True):
        assert block % 128 == 0
        assert block < extent + 128
    assert plan.forward_block(rows, columns, d)[0] % 128 == 0 or rows <= plan.forward_block(rows, columns, d)[0]


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize("design", ["fused", "chunked"])
def test_configurations_name_every_argument(capability, design):
    chosen = list(configurations(capability, design))
    assert len({configuration.name for configuration in chosen}) == len(chosen) == (9 if design == "fused" else 7)
    for configuration in chosen:
        assert {*configuration.signature, *configuration.constexprs} == set(configuration.kernel.arg_names)
        assert not {*configuration.signature} & {*configuration.constexprs}
        assert {*configuration.divisible} <= {*configuration.signature}
