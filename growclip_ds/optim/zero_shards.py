"""The layout of named parameters in the flat fp32 shards of a DeepSpeed ZeRO optimizer.

ZeRO stages 1 and 2 concatenate the parameters and cut the result into one shard per rank, wherever the cuts fall.
Stage 3 cuts every parameter into equal pieces and concatenates a rank's pieces, in sub-groups. Everything that must
find tensors inside shards (trust ratios, subnet updates, reading and loading weights) uses this layout.

DeepSpeed's own `safe_get_*` and `safe_set_*` are not used: in 0.19 they fail if a size is not divisible by the number
of ranks, hang before the first step, and do not update the working copies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from growclip_ds.architecture import Shape


@dataclass(frozen=True)
class Piece:
    """The part of a parameter that one rank holds.

    Attributes:
        flat_offset: index of its first element in the rank's flat shard.
        param_offset: index of its first element in the flattened (row-major) parameter.
        numel: number of its elements; 0 if the rank holds none.
    """

    flat_offset: int
    param_offset: int
    numel: int

    def of(self, flat: Tensor) -> Tensor:
        """A view of this piece in a tensor that is laid out like the shard."""
        return flat[self.flat_offset : self.flat_offset + self.numel]


@dataclass(frozen=True)
class Segment:
    """A parameter's place in the shards: one piece per rank, in rank order."""

    name: str
    shape: Shape
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, eq=False)
class FlatShard:
    """This rank's shard of a group of parameters.

    Attributes:
        flat: (n,) the fp32 masters; there may be padding between the pieces and after the last one.
        segments: every parameter of the group, including those of which this rank holds nothing; the same on all ranks.
        group: process group of the ranks that hold the shards.
        rank: this rank's index in `group`.
        device: the device that `group` communicates from; with CPU offload, it is not the device of `flat`.
    """

    flat: Tensor
    segments: tuple[Segment, ...]
    group: dist.ProcessGroup
    rank: int
    device: torch.device

    def piece(self, segment: Segment) -> Piece:
        """This rank's piece of the parameter."""
        return segment.pieces[self.rank]


def flat_shards(zero_optimizer: Any, names: Mapping[nn.Parameter, str]) -> list[FlatShard]:
    """The shards of a ZeRO optimizer (stages 1, 2 and 3, and DeepSpeed's BF16_Optimizer) with their layout.

    Args:
        zero_optimizer: `engine.optimizer` of a DeepSpeed engine.
        names: the name of each of its parameters.
    """
    if hasattr(zero_optimizer, "fp32_partitioned_groups_flat"):
        return [_stage3_shard(zero_optimizer, index, names) for index in range(len(zero_optimizer.fp16_groups))]
    if hasattr(zero_optimizer, "single_partition_of_fp32_groups"):
        groups = zero_optimizer.round_robin_bit16_groups  # in the order of the flat tensor, also without round robin
        offsets = zero_optimizer.round_robin_bit16_offsets
        flats = zero_optimizer.single_partition_of_fp32_groups
    else:  # BF16_Optimizer: stage 1 with fp32 accumulation of bf16 gradients
        groups = zero_optimizer.bf16_groups
        offsets = [list(itertools.accumulate((p.numel() for p in group), initial=0))[:-1] for group in groups]
        flats = zero_optimizer.fp32_groups_flat_partition
    process_groups = zero_optimizer.real_dp_process_group
    return [
        _stage12_shard(flat, group, offsets_in_group, process_group, names)
        for flat, group, offsets_in_group, process_group in zip(flats, groups, offsets, process_groups, strict=True)
    ]


def gather(
    shards: list[FlatShard],
    owner: Callable[[str], int],
    source: Callable[[FlatShard], Tensor] = lambda shard: shard.flat,
) -> Iterator[tuple[str, Tensor | None]]:
    """Gathers parameters one at a time, each on one rank; every element is sent at most once.

    Collective: every rank must exhaust the iterator, with the same owners.

    Args:
        shards: the shards, from `flat_shards`.
        owner: returns the rank, within the shards' group, that receives the parameter of a name.
        source: returns the tensor to read, laid out like `shard.flat`; by default the fp32 masters.

    Yields:
        The name, and the full tensor on the CPU of its owner; None on other ranks.
    """
    for shard in shards:
        for segment in shard.segments:
            yield segment.name, _gather_one(shard, segment, source(shard), owner(segment.name))


@torch.no_grad()
def scatter(shard: FlatShard, segment: Segment, full: Tensor, destination: Tensor) -> None:
    """Copies this rank's piece of a full tensor to its place in `destination`, which is laid out like `shard.flat`."""
    piece = shard.piece(segment)
    piece.of(destination).copy_(full.reshape(-1)[piece.param_offset : piece.param_offset + piece.numel])


@torch.no_grad()
def refresh_weights(zero_optimizer: Any) -> None:
    """Copies the fp32 masters into the model's working copies. Collective."""
    if hasattr(zero_optimizer, "fp32_partitioned_groups_flat"):
        zero_optimizer._partition_all_parameters()  # drops gathered copies, which would not be refreshed
        for index in range(len(zero_optimizer.fp16_groups)):
            zero_optimizer._reassign_or_swap_out_partitioned_parameters(index)
        if persistent := zero_optimizer.persistent_parameters:
            persistent[0].all_gather(persistent)
    else:
        zero_optimizer.update_lp_params()


def _stage3_shard(zero_optimizer: Any, index: int, names: Mapping[nn.Parameter, str]) -> FlatShard:
    parameters = zero_optimizer.fp16_groups[index]  # called so for any dtype
    group = parameters[0].ds_process_group
    segments = []
    for parameter in parameters:
        _, flat_offset, share = zero_optimizer.grad_position[zero_optimizer.get_param_id(parameter)]
        starts = [min(rank * share, parameter.ds_numel) for rank in range(dist.get_world_size(group) + 1)]
        pieces = tuple(Piece(flat_offset, start, end - start) for start, end in itertools.pairwise(starts))
        segments.append(Segment(names[parameter], tuple(parameter.ds_shape), pieces))
    return _shard(zero_optimizer.fp32_partitioned_groups_flat[index], segments, group)


def _stage12_shard(
    flat: Tensor,
    parameters: list[nn.Parameter],
    offsets: list[int],
    group: dist.ProcessGroup,
    names: Mapping[nn.Parameter, str],
) -> FlatShard:
    cuts = [rank * flat.numel() for rank in range(dist.get_world_size(group) + 1)]
    segments = []
    for parameter, offset in zip(parameters, offsets, strict=True):
        pieces = []
        for start, end in itertools.pairwise(cuts):
            first, last = max(start, offset), min(end, offset + parameter.numel())
            pieces.append(Piece(first - start, first - offset, last - first) if first < last else Piece(0, 0, 0))
        segments.append(Segment(names[parameter], tuple(parameter.shape), tuple(pieces)))
    return _shard(flat, segments, group)


def _shard(flat: Tensor, segments: list[Segment], group: dist.ProcessGroup) -> FlatShard:
    from deepspeed.accelerator import get_accelerator  # not needed for the arithmetic of shards

    device = torch.device(get_accelerator().current_device_name())
    return FlatShard(flat, tuple(segments), group, dist.get_rank(group), device)


@torch.no_grad()
def _gather_one(shard: FlatShard, segment: Segment, flat: Tensor, owner: int) -> Tensor | None:
    # In one batch: outside of one, NCCL creates a communicator for every pair of ranks.
    transfers: list[dist.P2POp] = []
    if shard.rank != owner:
        piece = shard.piece(segment)
        if piece.numel:
            sent = piece.of(flat).to(shard.device)
            transfers.append(dist.P2POp(dist.isend, sent, group=shard.group, group_peer=owner))
        _complete(transfers)
        return None
    received: list[tuple[Piece, Tensor]] = []
    for rank, piece in enumerate(segment.pieces):
        if rank == owner:
            received.append((piece, piece.of(flat)))
        elif piece.numel:
            buffer = torch.empty(piece.numel, dtype=flat.dtype, device=shard.device)
            transfers.append(dist.P2POp(dist.irecv, buffer, group=shard.group, group_peer=rank))
            received.append((piece, buffer))
    _complete(transfers)
    full = torch.empty(math.prod(segment.shape), dtype=flat.dtype)
    for piece, values in received:
        full[piece.param_offset : piece.param_offset + piece.numel].copy_(values)
    return full.view(segment.shape)


def _complete(transfers: list[dist.P2POp]) -> None:
    for work in dist.batch_isend_irecv(transfers) if transfers else []:
        work.wait()
