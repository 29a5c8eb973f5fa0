"""Every configuration in which the kernels of the losses are compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from growclip_kernels.configuration import Configuration
from growclip_kernels.contrastive import plan
from growclip_kernels.contrastive.kernels import gradient_kernel, log_sum_exp_kernel

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_FEATURES = ("images", "texts", "gradient")
_FP32 = ("products", "factor", "bias", "row_lse", "column_lse", "row_partials", "column_partials", "diagonal", "sums")
_INTEGERS = ("rows", "columns", "d", "products_stride", "gradient_stride", "pair")


def configurations(capability: tuple[int, int], design: plan.Design = "fused") -> Iterator[Configuration]:
    """The configurations for a device of this capability; dispatch chooses the fused design."""
    for name, dtype in _DTYPES.items():
        if design == "fused" or name == "fp32":  # chunked: the library's products are fp32
            yield _configuration(f"log-sum-exp, {name}", log_sum_exp_kernel, "softmax", name, capability, design)
        for loss in ("softmax", "sigmoid"):
            special = {"SIGMOID": loss == "sigmoid", "GRAIN_BITS": plan.grain_bits(dtype)}
            unused = ("row_lse", "column_lse") if loss == "sigmoid" else ("bias",)
            yield _configuration(
                f"{loss} gradient, {name}", gradient_kernel, loss, name, capability, design, unused, **special
            )


def _configuration(
    name: str,
    kernel: Any,
    loss: plan.Loss,
    dtype: str,
    capability: tuple[int, int],
    design: plan.Design,
    unused: tuple[str, ...] = (),
    **special: Any,
) -> Configuration:
    tile = plan.tile(loss, _DTYPES[dtype], capability, design)
    given = design == "chunked"
    unused += ("images", "texts", "d") if given else ("products", "products_stride")
    constexprs = {
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "BLOCK_K": tile.depth,
        "SCORES_GIVEN": given,
        "PRECISION": plan.precision(_DTYPES[dtype]),
        **special,
        **dict.fromkeys(unused),
    }
    types = {
        **dict.fromkeys(_FEATURES, f"*{dtype}"),
        **dict.fromkeys(_FP32, "*fp32"),
        **dict.fromkeys(_INTEGERS, "i32"),
    }
    signature = {argument: types[argument] for argument in kernel.arg_names if argument not in constexprs}
    return Configuration(
        name=f"contrastive {design} {name}",
        kernel=kernel,
        signature=signature,
        constexprs=constexprs,
        num_warps=tile.warps,
        num_stages=tile.stages,
        divisible=tuple(name for name in ("d", "products_stride", "gradient_stride") if name in signature),
    )
