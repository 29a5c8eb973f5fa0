"""Zero-shot classification as CLIP does it (Radford et al. 2021, section 3.1), for many candidates in one pass."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from growclip_ds.distributed import all_reduce_sum, rank, world_size
from growclip_ds.errors import InputError
from growclip_ds.evaluation.batches import batches, nothing_readable
from growclip_ds.evaluation.datasets import ClassificationSet
from growclip_ds.evaluation.encoder import CandidateEncoder, Tokenize, first_sharers
from growclip_ds.results import ClassificationResult


def classify(
    encoder: CandidateEncoder, dataset: ClassificationSet, tokenize: Tokenize, image_size: int, batch_size: int
) -> list[ClassificationResult]:
    """Classifies each image of the set as the class whose prompts it is most similar to. Collective.

    The ranks share the prompts and the images, and of an image only counts are kept. Ties are broken by the order of
    the classes, as in an argmax; a NaN similarity ranks ahead of the image's own class.

    Args:
        encoder: encodes with every candidate.
        dataset: the set, from `load_evaluation_set`.
        tokenize: packs texts as tokens, such as a `data.tokens.Tokenizer`.
        image_size: side of the images in pixels.
        batch_size: number of images, or prompts, that a rank encodes at a time.

    Returns:
        One result per candidate, the same on every rank.

    Raises:
        InputError: on every rank, if the set cannot be read or none of its images can be decoded.
    """
    classifiers = class_embeddings(encoder, dataset, tokenize, batch_size)
    device, classes = classifiers[0].device, len(dataset.class_names)
    seen = torch.zeros(classes, dtype=torch.int64, device=device)
    hits = torch.zeros((len(classifiers), 2, classes), dtype=torch.int64, device=device)  # top-1 and top-5
    unreadable = torch.zeros(1, dtype=torch.int64, device=device)
    for pixels, labels, left_out in batches(dataset, image_size, batch_size):
        truth = torch.tensor(labels, dtype=torch.int64, device=device)
        unreadable += left_out
        seen += truth.bincount(minlength=classes)
        counted: dict[tuple[int, int], Tensor] = {}
        features = encoder.images(pixels)
        for candidate, pair in enumerate(zip(features, classifiers, strict=True)):
            key = (id(pair[0]), id(pair[1]))
            if key not in counted:
                counted[key] = _hits(*pair, truth)
            hits[candidate] += counted[key]
    for counts in (seen, hits, unreadable):
        all_reduce_sum(counts)
    if not seen.any():
        raise InputError(f"evaluation set {dataset.name}: {nothing_readable(int(unreadable))}")
    return [_result(dataset.name, seen, *counts, int(unreadable)) for counts in hits]


def class_embeddings(
    encoder: CandidateEncoder, dataset: ClassificationSet, tokenize: Tokenize, batch_size: int
) -> list[Tensor]:
    """Each candidate's classifier, (classes, e): the mean of each class's normalised prompt features, normalised.

    Rank i mod W encodes prompt i. Sums are in fp64, so that their order does not affect the result.
    """
    prompts = [
        (number, template.replace("{c}", name))
        for number, name in enumerate(dataset.class_names)
        for template in dataset.templates
    ]
    mine = prompts[rank() :: world_size()]
    share = math.ceil(len(prompts) / world_size())
    sums: dict[int, Tensor] = {}
    sharers: list[int] = []
    for start in range(0, share, batch_size):
        batch = mine[start : start + batch_size]
        features = encoder.texts(tokenize([prompt for _, prompt in batch]))
        if not sums:
            sharers = first_sharers(features)
            shape = (len(dataset.class_names), features[0].shape[1])
            sums = {first: features[first].new_zeros(shape, dtype=torch.float64) for first in set(sharers)}
        numbers = torch.tensor([number for number, _ in batch], dtype=torch.int64, device=features[0].device)
        for first, total in sums.items():
            total.index_add_(0, numbers, features[first].double())
    embeddings = {first: F.normalize(all_reduce_sum(sums[first]), dim=-1).float() for first in sorted(sums)}
    return [embeddings[first] for first in sharers]


def _hits(features: Tensor, classifier: Tensor, truth: Tensor) -> Tensor:
    """Number of images (n, e) of each class whose class ranks first, and among the first five; (2, classes)."""
    logits = features @ classifier.T  # (n, classes)
    own = logits.gather(1, truth[:, None])
    earlier = torch.arange(logits.shape[1], device=truth.device) < truth[:, None]
    ahead = ~(logits <= own) | ((logits == own) & earlier)  # ~(<=), not >: also true for NaN
    place = ahead.sum(1)
    return torch.stack([truth[place < k].bincount(minlength=logits.shape[1]) for k in (1, 5)])


def _result(name: str, seen: Tensor, top1: Tensor, top5: Tensor, unreadable: int) -> ClassificationResult:
    samples = int(seen.sum())
    per_class = top1[seen > 0].double() / seen[seen > 0]
    return ClassificationResult(
        dataset=name,
        samples=samples,
        top1=100 * int(top1.sum()) / samples,
        top5=100 * int(top5.sum()) / samples,
        mean_per_class=100 * float(per_class.mean()),
        unreadable=unreadable,
    )
