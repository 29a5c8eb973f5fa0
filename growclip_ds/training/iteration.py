"""One training iteration, with negatives from the whole global batch.

Loss and gradients do not depend on how the global batch is split over ranks and micro-batches. Several micro-batches
take two passes (GradCache, Gao et al. 2021): the features of all without a graph, the loss and its gradients with
respect to the features, then a second forward pass of each micro-batch with a graph to back-propagate them through.
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
    """The outcome of an iteration.

    Attributes:
        loss: the contrastive loss of the global batch, before the update.
        gradient_norm: norm of the global batch's gradient, before clipping.
        logit_scale: the factor of the similarities (inverse temperature).
        skipped: whether the update was skipped because the loss or gradients were not finite, or the loss too large.
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
    """Trains the model, or a sampled subnet of it, on one global batch. Collective.

    Args:
        engine: the engine that holds the model.
        micro_batches: this rank's part: images (n, 3, S, S), uint8 or normalised, and their packed captions. The number
            of micro-batches is the same on every rank; n may differ, and be 0.
        learning_rate: learning rate of this iteration.
        architecture: the candidate that is run and updated; None for the whole model.
        loss_limit: the update is skipped unless the loss is below it.
        counts: number of pairs of each rank, over all its micro-batches; see `contrastive_loss`.
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
    """The model's outputs. Images are normalised here, one micro-batch at a time, to save memory."""
    images, text = micro_batch
    if images.dtype == torch.uint8:
        images = normalise(images, engine.dtype)
    return engine(images, text, architecture)


def _scaled(loss: Tensor, limit: float) -> Tensor:
    """The loss to differentiate, times the number of ranks: DeepSpeed averages gradients over ranks, this loss needs
    their sum.

    A loss that is not below the limit gets NaN gradients, so that all ranks skip the update without a synchronisation
    with the device.
    """
    return loss * torch.where(loss.detach() < limit, float(world_size()), math.nan)


def _two_passes(
    engine: Engine,
    micro_batches: Sequence[MicroBatch],
    architecture: Architecture | None,
    loss_limit: float,
    counts: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """The loss and the logit scale; the gradients are accumulated in the engine."""
    with torch.no_grad():
        outputs = [_forward(engine, micro_batch, architecture) for micro_batch in micro_batches]
    sizes = [image_features.shape[0] for image_features, _, _ in outputs]
    cached = [torch.cat([output[i] for output in outputs]) for i in range(2)] + [outputs[0][2]]
    # DeepSpeed scales fp16's loss only when it is given the loss: unscaled, the gradients need fp32's range.
    wide = [tensor.float() if tensor.dtype == torch.float16 else tensor for tensor in cached]
    leaves = [tensor.detach().requires_grad_() for tensor in wide]
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
