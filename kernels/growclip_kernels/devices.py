"""The device properties by which kernels are chosen."""

from __future__ import annotations

import functools

import torch

INTERPRETED = (9, 0)  # on the CPU, Triton's interpreter runs what a Hopper GPU would


@functools.cache
def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else INTERPRETED
