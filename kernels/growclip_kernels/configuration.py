"""A kernel configuration: one way to compile a kernel, as dispatch launches it. Compile checks cover all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Configuration:
    """A kernel with everything that determines its compiled code.

    Attributes:
        name: label in the table of resources, such as "attention backward to 256, bf16".
        kernel: the `triton.jit` function.
        signature: type of each runtime argument, by name, in Triton's notation ("*bf16", "i32").
        constexprs: value of each compile-time argument, by name.
        num_warps, num_stages: launch options.
        divisible: names of the runtime integers that are always multiples of 16. Pointers are assumed to be.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int
    divisible: tuple[str, ...] = ()
