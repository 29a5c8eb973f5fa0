"""Chooses the implementation: the Triton kernels where they run, PyTorch operators everywhere else.

The environment variable GROWCLIP_KERNELS overrides the choice: `torch`, or `triton` (for tests also on the CPU, under
Triton's interpreter).
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
    """Whether tensors on `device` are processed by the Triton kernels.

    Raises:
        ValueError: GROWCLIP_KERNELS is neither `torch` nor `triton`, or is `triton` where the kernels cannot run.
        RuntimeError: the kernels support this device, but Triton cannot launch any on this machine.
    """
    return _choose(os.environ.get(SETTING, ""), device)


def interpreted() -> bool:
    """Whether the Triton kernels run on the CPU, under Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _choose(setting: str, device: torch.device) -> bool:
    """Chooses, and logs the choice, once per setting and device."""
    obstacle = _obstacle(device)
    if setting == "triton" and obstacle:
        raise ValueError(f"{SETTING}=triton, but {obstacle}; unset it or set {SETTING}=torch")
    if setting not in ("", "torch", "triton"):
        raise ValueError(f"{SETTING} is {setting!r}: set it to 'torch' or 'triton', or leave it to be chosen by device")
    on_cpu = device.type == "cpu"  # the interpreter runs only on request, never by default
    chosen = setting == "triton" or (not setting and not obstacle and not on_cpu)
    if chosen and not on_cpu:
        _require_launcher()
    reason = f" ({SETTING}={setting})" if setting else f" ({obstacle})" if obstacle else ""
    logger.info("kernels on %s: %s%s", device, "Triton" if chosen else "PyTorch", reason)
    return chosen


def _obstacle(device: torch.device) -> str | None:
    """Why the Triton kernels cannot run on the device; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cpu":
        return None if interpreted() else "the tensors are on the CPU"
    if device.type != "cuda" or torch.version.cuda is None:
        return f"there are no kernels for {device.type} devices other than NVIDIA's"
    if interpreted():
        return "TRITON_INTERPRET=1 makes Triton interpret kernels on the CPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        return f"{device} has compute capability {capability[0]}.{capability[1]}, and the kernels need 8.0"
    return None


def _require_launcher() -> None:
    """Makes Triton build its launcher, so that a missing compiler or header is found before training starts."""
    from triton.runtime import driver

    try:
        _ = driver.active.utils
    except Exception as error:  # the compiler, the linker and the driver each raise their own
        raise RuntimeError(
            f"Triton cannot launch kernels on this machine: {error}; it needs NVIDIA's driver, a C compiler and "
            f"Python's headers (python3-dev) on every node, or set {SETTING}=torch"
        ) from error
