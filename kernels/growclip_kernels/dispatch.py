"""Which implementation computes: Triton's kernels where they run, PyTorch's everywhere else.

The environment variable GROWCLIP_KERNELS has the last word: `torch`, or `triton` (on the CPU too, under Triton's
interpreter, for tests).
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os

import torch

logger = logging.getLogger("growclip_kernels")

SETTING = "GROWCLIP_KERNELS"
OLDEST_CAPABILITY = (8, 0)  # bf16 and asynchronous copies


@torch.compiler.assume_constant_result
def uses_triton(device: torch.device) -> bool:
    """Whether tensors on `device` are for Triton's kernels.

    Raises:
        ValueError: GROWCLIP_KERNELS is neither `torch` nor `triton`, or asks for what cannot be.
    """
    return _choose(os.environ.get(SETTING, ""), device)


def interpreted() -> bool:
    """Whether Triton's kernels run on the CPU, under its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _choose(setting: str, device: torch.device) -> bool:
    """Once a setting and device: what is chosen is logged, and cached."""
    obstacle = _obstacle(device)
    if setting == "triton" and obstacle:
        raise ValueError(f"{SETTING}=triton, but {obstacle}; unset it or set {SETTING}=torch")
    if setting not in ("", "torch", "triton"):
        raise ValueError(f"{SETTING} is {setting!r}: set it to 'torch' or 'triton', or leave it to be chosen by device")
    interpreted = device.type == "cpu"  # for tests: never chosen, only asked for
    chosen = setting == "triton" or (not setting and not obstacle and not interpreted)
    reason = f" ({SETTING}={setting})" if setting else f" ({obstacle})" if obstacle else ""
    logger.info("kernels on %s: %s%s", device, "Triton" if chosen else "PyTorch", reason)
    return chosen


def _obstacle(device: torch.device) -> str | None:
    """Why Triton's kernels cannot run on the device; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cpu":
        return None if interpreted() else "the tensors are on the CPU"
    if device.type != "cuda" or torch.version.cuda is None:
        return f"there are no kernels for {device.type} devices other than NVIDIA's"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        return f"{device} is of capability {capability[0]}.{capability[1]}, and they need 8.0"
    return None
