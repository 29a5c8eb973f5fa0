"""One training iteration, in which the negatives are the whole global batch.

However the global batch is divided into ranks and micro-batches, loss and gradients are those of one process with all
of it. With several micro-batches that takes two passes (GradCache, Gao et al. 2021): features of all without a graph,
the loss and its gradients in them, then each micro-batch once more with its graph, into which those gradients flow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from growclip_ds.architecture import Architecture
from growclip_ds.data.pictures import normalise
from growclip_ds.distributed import world_size
from growclip_ds.model.packed import PackedTokens
from growclip_ds.training.engine import Engine
from growclip_kernels import contrastive_loss

if TYPE_CHECKING:
    from growclip_ds.model.growclip import GrowCLIP

MicroBatch = tuple[Tensor, PackedTokens]


class Outcome(NamedTuple):
    """What an iteration did.

    Attributes:
        loss: the contrastive loss of the global batch, before the update.
        gradient_norm: of the global batch's gradient, before clipping.
        logit_scale: what similarities were multiplied by.
        skipped: whether the update was left out because loss or gradients were not finite, or the loss too large.
    """

    loss: float
    gradient_norm: float
    logit_scale: float
    skipped: bool


def train_iteration(
    engine: Engine,
    micro_batches: Sequence[MicroBatch],
    learning_rate: float,
    architecture: Architecture | None = None,
    loss_limit: float = math.inf,
    counts: Sequence[int] | None = None,
) -> Outcome:
    """Trains on a global batch, or on the sampled subnet with it. Collective.

    Args:
        engine: of a GrowCLIP.
        micro_batches: this rank's part: pictures (n, 3, S, S), bytes or normalised, and their captions. As many on
            every rank; n may differ, and be 0.
        learning_rate: of this iteration.
        architecture: the candidate to run and update alone; the whole model if None.
        loss_limit: with a loss that is not below it there is no update.
        counts: pairs of each rank, in all its micro-batches; see `contrastive_loss`.
    """
    if len(micro_batches) == 1:
        image_features, text_features, logit_scale = _forward(engine, micro_batches[0], architecture)
        loss = contrastive_loss(image_features, text_features, logit_scale, counts=counts)
        engine.backward(_scaled(loss, loss_limit))
    else:
        loss, logit_scale = _two_passes(engine, micro_batches, architecture, loss_limit, counts)
    active = None if architecture is None else architecture.parameter_shapes(cast("GrowCLIP", engine.module).sizes)
    engine.step(learning_rate, active)
    return Outcome(loss.item(), engine.gradient_norm, logit_scale.item(), engine.skipped)


def _forward(
    engine: Engine, micro_batch: MicroBatch, architecture: Architecture | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The model's outputs. Bytes become the model's input only here: all micro-batches' would fill the memory."""
    images, text = micro_batch
    if images.dtype == torch.uint8:
        images = normalise(images, engine.dtype)
    return engine(images, text, architecture)


def _scaled(loss: Tensor, limit: float) -> Tensor:
    """What is to be differentiated: DeepSpeed averages over the ranks, the loss's gradients want the sum.

    Gradients of a loss that is not below the limit are made NaN, so that the update is skipped, on all ranks alike,
    without waiting here for the device to know the loss.
    """
    return loss * torch.where(loss.detach() < limit, float(world_size()), math.nan)


def _two_passes(
    engine: Engine,
    micro_batches: Sequence[MicroBatch],
    architecture: Architecture | None,
    loss_limit: float,
    counts: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """Loss and temperature, the gradients left in the engine."""
    with torch.no_grad():
        outputs = [_forward(engine, micro_batch, architecture) for micro_batch in micro_batches]
    sizes = [image_features.shape[0] for image_features, _, _ in outputs]
    cached = [torch.cat([output[i] for output in outputs]) for i in range(2)] + [outputs[0][2]]
    leaves = [tensor.detach().float().requires_grad_() for tensor in cached]
    image_features, text_features, logit_scale = leaves
    loss = contrastive_loss(image_features, text_features, logit_scale, counts=counts)
    image_gradients, text_gradients, scale_gradient = torch.autograd.grad(_scaled(loss, loss_limit), leaves)
    parts = zip(micro_batches, image_gradients.split(sizes), text_gradients.split(sizes), strict=True)
    for index, (micro_batch, *feature_gradients) in enumerate(parts, start=1):
        again = _forward(engine, micro_batch, architecture)
        gradients = [*feature_gradients, scale_gradient / len(micro_batches)]
        surrogate = sum((output * gradient).sum() for output, gradient in zip(again, gradients, strict=True))
        engine.backward(surrogate, final=index == len(micro_batches))
    return loss, logit_scale
