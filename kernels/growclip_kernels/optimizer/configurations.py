"""Every configuration in which the optimizer kernels are compiled."""

from __future__ import annotations

from collections.abc import Iterator

from growclip_kernels.configuration import Configuration
from growclip_kernels.optimizer.kernels import adamw_kernel, lamb_apply_kernel, lamb_direction_kernel, squares_kernel
from growclip_kernels.optimizer.regions import BLOCK
from growclip_kernels.optimizer.triton_path import SUM_BLOCK, SUM_WARPS, WARPS

_TYPES = {
    "spans": "*i64",
    "squares": "*fp64",
    **dict.fromkeys(("span_of", "first_block", "is_matrix"), "*i32"),
    **dict.fromkeys(("take1", "keep2", "take2", "eps"), "fp32"),
    "blocks": "i32",
}
_KERNELS = {
    "AdamW": (adamw_kernel, BLOCK, WARPS),
    "LAMB, direction": (lamb_direction_kernel, BLOCK, WARPS),
    "LAMB, sums of squares": (squares_kernel, SUM_BLOCK, SUM_WARPS),
    "LAMB, application": (lamb_apply_kernel, BLOCK, WARPS),
}


def configurations(capability: tuple[int, int]) -> Iterator[Configuration]:
    """The configurations for a device of this capability, which are the same for all."""
    for name, (kernel, block, warps) in _KERNELS.items():
        yield Configuration(
            name=f"optimizer {name}",
            kernel=kernel,
            signature={argument: _TYPES.get(argument, "*fp32") for argument in kernel.arg_names if argument != "BLOCK"},
            constexprs={"BLOCK": block},
            num_warps=warps,
            num_stages=3,  # Triton's default
        )
