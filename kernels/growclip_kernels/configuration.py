"""One way to compile a kernel, as dispatch launches it; the compile checks cover all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Configuration:
    """A kernel with everything that decides what it compiles to.

    Attributes:
        name: for the table, such as "attention backward ≤ 256 bf16".
        kernel: the `triton.jit` function.
        signature: the type of each runtime argument, by name, in Triton's notation ("*bf16", "i32").
        constexprs: the value of each compile-time argument.
        num_warps, num_stages: launch options.
        divisible: runtime integers that are always multiples of 16. Pointers are taken to be.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int
    divisible: tuple[str, ...] = ()
