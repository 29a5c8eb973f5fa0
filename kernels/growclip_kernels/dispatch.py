"""Chooses the implementation: Triton's kernels where they run, PyTorch's everywhere else.

The environment variable GROWCLIP_KERNELS overrides this: `torch`, or `triton` (on the CPU too, under Triton's
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
        RuntimeError: kernels are for this device, but Triton cannot launch any on this machine.
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
    on_cpu = device.type == "cpu"  # under the interpreter: never chosen, only asked for
    chosen = setting == "triton" or (not setting and not obstacle and not on_cpu)
    if chosen and not on_cpu:
        _require_launcher()
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
    if interpreted():
        return "TRITON_INTERPRET=1 has kernels interpreted, on the CPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        return f"{device} is of capability {capability[0]}.{capability[1]}, and they need 8.0"
    return None


def _require_launcher() -> None:
    """Has Triton make what launches its kernels, before anything depends on it."""
    from triton.runtime import driver

    try:
        _ = driver.active.utils
    except Exception as error:  # of the compiler, the linker or the driver
        raise RuntimeError(
            f"Triton cannot launch kernels on this machine: {error}; it needs NVIDIA's driver, a C compiler and "
            f"Python's headers (python3-dev) on every node, or set {SETTING}=torch"
        ) from error
