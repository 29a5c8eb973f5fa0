"""Every configuration in which the attention kernels are compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from growclip_kernels.configuration import Configuration
from growclip_kernels.packed_attention.looping import backward_keys, backward_queries, forward_looping
from growclip_kernels.packed_attention.on_chip import backward_on_chip, forward_on_chip
from growclip_kernels.packed_attention.plan import LOOPING, LOOPING_FP32, Tile, on_chip_tiles

_FEATURES = ("qkv", "out", "grad_out", "grad_qkv")
_OTHERS = {
    "lse": "*fp32",
    "delta": "*fp32",
    "cu_seqlens": "*i32",
    "flags": "*u8",
    **dict.fromkeys(
        ("tokens", "heads", "stride_token", "flagged", "all_causal", "first_sequence", "shorter", "tiles"), "i32"
    ),
}


def configurations(capability: tuple[int, int]) -> Iterator[Configuration]:
    """The configurations that dispatch can choose on a device of this capability."""
    for dtype in ("bf16", "fp16"):
        for tiles in on_chip_tiles(capability):
            name, transposed = f"to {tiles.longest}", {"TRANSPOSED": tiles.transposed}
            yield _configuration(f"forward {name}", forward_on_chip, dtype, tiles.forward, {})
            yield _configuration(f"backward {name}", backward_on_chip, dtype, tiles.backward, transposed)
    for dtype, looping in (("bf16", LOOPING), ("fp16", LOOPING), ("fp32", LOOPING_FP32)):
        precision = {"PRECISION": looping.precision}
        yield _configuration("forward, looping", forward_looping, dtype, looping.forward, precision)
        yield _configuration("queries' gradient", backward_queries, dtype, looping.backward_queries, precision)
        yield _configuration("keys' gradient", backward_keys, dtype, looping.backward_keys, precision)


def _configuration(name: str, kernel: Any, dtype: str, tile: Tile, constexprs: dict[str, Any]) -> Configuration:
    constexprs = {"QUERIES": tile.queries, "KEYS": tile.keys, **constexprs}
    types = {**dict.fromkeys(_FEATURES, f"*{dtype}"), **_OTHERS}
    return Configuration(
        name=f"attention {name}, {dtype}",
        kernel=kernel,
        signature={name: types[name] for name in kernel.arg_names if name not in constexprs},
        constexprs=constexprs,
        num_warps=tile.warps,
        num_stages=tile.stages,
        divisible=("stride_token",),
    )
