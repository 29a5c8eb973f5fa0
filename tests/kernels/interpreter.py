"""bfloat16 under Triton's interpreter (3.6 to 3.9), which keeps its bits in uint16 and gets two things wrong.

Products multiply those integers, and conversions from fp32 cut off where a GPU rounds to the nearest. Both are put
right here, from outside; without the interpreter there is nothing to do.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
import torch


def repair() -> None:
    """Puts bfloat16 right in Triton's interpreter, once."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    if getattr(InterpreterBuilder, "bfloat16_repaired", False):
        return

    def widened(tensor: Any) -> Any:
        if tensor.dtype.scalar != tl.bfloat16:
            return tensor
        bits = torch.from_numpy(np.ascontiguousarray(tensor.data)).view(torch.bfloat16)
        return TensorHandle(bits.float().numpy(), tl.float32)

    def dot(original: Any, self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        return original(self, widened(a), widened(b), d, *options)

    def convert(original: Any, self: Any, source: Any, target: Any, *options: Any) -> Any:
        if (source.dtype.scalar, target.scalar) != (tl.float32, tl.bfloat16):
            return original(self, source, target, *options)
        rounded = torch.from_numpy(np.ascontiguousarray(source.data)).to(torch.bfloat16)
        return TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)

    replacements = {"create_dot": dot, "cast_impl": convert, "create_fp_to_fp": convert}
    for name, replacement in replacements.items():
        original = getattr(InterpreterBuilder, name)
        # A plain function, so that it is bound as the method it stands in for.
        setattr(InterpreterBuilder, name, _method(replacement, original))
    InterpreterBuilder.bfloat16_repaired = True


def _method(replacement: Any, original: Any) -> Any:
    @functools.wraps(original)
    def method(self: Any, *arguments: Any) -> Any:
        return replacement(original, self, *arguments)

    return method


if os.environ.get("TRITON_INTERPRET") == "1":
    repair()
