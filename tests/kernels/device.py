"""Where the kernels run: under Triton's interpreter on the CPU or, with TRITON_INTERPRET=0, compiled on a GPU."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
COMPILED = not INTERPRETED and torch.cuda.is_available()
DEVICE = torch.device("cuda" if COMPILED else "cpu")

runs_kernels = pytest.mark.skipif(
    not (INTERPRETED or COMPILED), reason="TRITON_INTERPRET=0: kernels are compiled for a GPU, and there is none"
)
runs_kernels_on_ranks = pytest.mark.skipif(
    not INTERPRETED, reason="TRITON_INTERPRET=0: a group's ranks are on the CPU, where kernels are interpreted"
)


def on_device(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of the same values where the kernels run, leaves that want a gradient if the given ones do.

    Tests draw on the CPU and then call this: a GPU's generator would give them other values.
    """
    return tuple(tensor.detach().to(DEVICE).requires_grad_(tensor.requires_grad) for tensor in tensors)
