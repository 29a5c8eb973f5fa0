"""Collectives as a thin layer over torch.distributed that also works without a process group, as a world of size 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from growclip_ds.errors import InputError

T = TypeVar("T")


class OtherRankError(RuntimeError):
    """Raised for an error on another rank, which itself raises the original, with the traceback and the exit code."""


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def all_gather_object(value: T) -> list[T]:
    """Every rank's value, in rank order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: T) -> T:
    """Rank 0's value on every rank."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sums the tensor over the ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def on_main(function: Callable[[], T]) -> T:
    """Runs the function on rank 0 and returns its result on every rank.

    Raises:
        InputError: on every rank, if the function raised one, so that all stop for the same reason.
        OtherRankError: on the other ranks, if it raised any other error; rank 0 raises the original.
    """
    result, error = _attempt(function) if is_main() else (None, None)
    result, shared = broadcast_object((result, error and _for_every_rank(error)))
    if shared is not None:
        _raise(shared, error)
    return result  # type: ignore[return-value]


def on_every_rank(function: Callable[[], T]) -> T:
    """Runs the function on every rank; an error on any rank is raised on all, that of the lowest failing rank.

    Raises:
        InputError: the function raised one on some rank.
        OtherRankError: the function raised any other error on another rank, which raises the original.
    """
    result, error = _attempt(function)
    for shared in all_gather_object(error and _for_every_rank(error)):
        if shared is not None:
            _raise(shared, error)
    return result  # type: ignore[return-value]


def in_lockstep(items: Iterator[T]) -> Iterator[T | None]:
    """Yields equally many items on every rank, by padding with None to the longest iterator. Collective.

    Raises:
        InputError: the iterator raised one on some rank.
        OtherRankError: the iterator raised any other error on another rank, which raises the original.
    """
    while True:
        item, error = _attempt(lambda: next(items, None))
        states = all_gather_object((item is not None, error and _for_every_rank(error)))
        for _, shared in states:
            if shared is not None:
                _raise(shared, error)
        if not any(has_item for has_item, _ in states):
            return
        yield item


def _attempt(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return function(), None
    except Exception as error:
        return None, error


def _for_every_rank(error: Exception) -> Exception:
    """This rank's error in the form that all ranks raise."""
    if isinstance(error, InputError):
        return InputError(str(error))
    return OtherRankError(f"rank {rank()}: {type(error).__name__}: {error}")


def _raise(shared: Exception, own: Exception | None) -> NoReturn:
    if own is not None and not isinstance(own, InputError):
        raise own
    raise shared from own


def ragged_all_gather(local: Tensor) -> Tensor:
    """Concatenates the ranks' tensors (n_r, ...) in rank order; n_r may differ between ranks and may be 0."""
    if world_size() == 1:
        return local
    sizes = [torch.zeros(1, dtype=torch.int64, device=local.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([local.shape[0]], device=local.device))
    counts = [int(size) for size in sizes]
    padded = local.new_zeros((max(counts), *local.shape[1:]))
    padded[: local.shape[0]] = local
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])
