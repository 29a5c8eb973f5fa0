"""Out-of-memory errors that say what was being done, and what would need less memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from growclip_ds import distributed
from growclip_ds.errors import InputError

# Only PyTorch's GPU allocator has an exception of its own; these are its CPU allocator, CUDA, NCCL and cuBLAS.
_RAN_OUT = re.compile(r"can't allocate memory|out of memory|ALLOC_FAILED")


@contextmanager
def memory_explained(doing: str, remedy: str) -> Iterator[None]:
    """A context in which running out of memory, the device's or the machine's, is the user's to mend.

    Args:
        doing: what goes on, at the beginning of the message.
        remedy: at its end.

    Raises:
        InputError: instead of whatever was raised for want of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, distributed.OtherRankError) or not ran_out_of_memory(error):
            raise
        said = str(error).partition("\n")[0].strip(" .") or type(error).__name__
        raise InputError(f"{doing}: rank {distributed.rank()} ran out of memory ({said}); {remedy}") from error


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and _RAN_OUT.search(str(error)) is not None
    )
