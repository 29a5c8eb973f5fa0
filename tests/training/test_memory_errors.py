"""Errors of memory are told from others, and say what to do."""

from __future__ import annotations

import pytest
import torch

from growclip_ds.distributed import OtherRankError
from growclip_ds.errors import InputError
from growclip_ds.training.memory_errors import memory_explained, ran_out_of_memory


def test_what_was_done_what_was_asked_for_and_the_remedy_are_in_the_message() -> None:
    with (
        pytest.raises(
            InputError, match=r"^step 2: rank 0 ran out of memory \(.*can't allocate memory.*\); ask for less$"
        ),
        memory_explained("step 2", "ask for less"),
    ):
        torch.empty(2**50, dtype=torch.uint8)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), memory_explained("step 2", "ask for less"):
        torch.ones(2, 3) @ torch.ones(2, 3)
    with pytest.raises(OtherRankError), memory_explained("step 2", "ask for less"):  # it was not this rank's memory
        raise OtherRankError("rank 1: OutOfMemoryError: CUDA out of memory")


@pytest.mark.parametrize(
    ("error", "ran_out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("NCCL error: unhandled cuda error. Last error: Cuda failure 2 'out of memory'"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("out of resource: shared memory, Required: 300000, Hardware limit: 232448"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_memory_are_known(error: Exception, ran_out: bool) -> None:
    assert ran_out_of_memory(error) == ran_out
