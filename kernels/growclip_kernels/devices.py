"""The device property that kernels and their tiles are chosen by: the compute capability."""

from __future__ import annotations

import functools

import torch

INTERPRETED = (9, 0)  # on the CPU, Triton's interpreter runs the configurations of a Hopper GPU


@functools.cache
def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU; of any other device, Hopper's."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else INTERPRETED
