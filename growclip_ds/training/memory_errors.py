"""Out-of-memory errors that tell the user what was running, and how to use less memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from growclip_ds import distributed
from growclip_ds.errors import InputError

# Only PyTorch's GPU allocator has its own exception type; these match its CPU allocator, CUDA, NCCL and cuBLAS.
_RAN_OUT = re.compile(r"can't allocate memory|out of memory|ALLOC_FAILED")


@contextmanager
def memory_explained(doing: str, remedy: str) -> Iterator[None]:
    """A context that turns out-of-memory errors, of the device or the machine, into errors that the user can fix.

    Args:
        doing: what the program is doing; begins the message.
        remedy: how to use less memory; ends the message.

    Raises:
        InputError: in place of any out-of-memory error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, distributed.OtherRankError) or not ran_out_of_memory(error):
            raise
        said = str(error).partition("\n")[0].strip(" .") or type(error).__name__
        raise InputError(f"{doing}: rank {distributed.rank()} ran out of memory ({said}); {remedy}") from error


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device or the machine is out of memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and _RAN_OUT.search(str(error)) is not None
    )
