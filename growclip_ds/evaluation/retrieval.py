"""Zero-shot retrieval in both directions, for many candidates in one pass over the pairs.

A set may hold the same caption or the same image several times, and duplicates cannot be told apart. Equal captions (by
their tokens) are therefore one answer, correct for every image that has one of them; likewise equal images (by their
pixels). Every image and every caption still is a query of its own. A tie between different answers counts against the
model: one whose features are all equal, or NaN, retrieves nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from growclip_ds.data.batch import Batch
from growclip_ds.distributed import all_reduce_sum, in_lockstep, ragged_all_gather
from growclip_ds.errors import InputError
from growclip_ds.evaluation.batches import batches, nothing_readable
from growclip_ds.evaluation.datasets import RetrievalSet
from growclip_ds.evaluation.encoder import CandidateEncoder, Tokenize, first_sharers
from growclip_ds.model.packed import PackedTokens, pack
from growclip_ds.results import RetrievalResult

RECALL_AT = (1, 5, 10)
HELD_OUT = "held-out pairs"  # the name of these in results
BLOCK = 2**24  # most similarities in memory at a time: 64 MiB in fp32

# Pixels (n, 3, S, S), m captions, the index of each caption's image (m,), and the number of unreadable images skipped.
PairBatch = tuple[Tensor, PackedTokens, Tensor, int]


def retrieve(
    encoder: CandidateEncoder, dataset: RetrievalSet, tokenize: Tokenize, image_size: int, batch_size: int
) -> list[RetrievalResult]:
    """R@1, R@5 and R@10 in both directions on a set with one or more captions per image. Collective.

    The ranks share the images, the captions and the queries.

    Args:
        encoder: encodes with every candidate.
        dataset: the set, from `load_evaluation_set`.
        tokenize: packs texts as tokens, such as a `data.tokens.Tokenizer`.
        image_size: side of the images in pixels.
        batch_size: number of images, with all their captions, that a rank encodes at a time.

    Returns:
        One result per candidate, the same on every rank.

    Raises:
        InputError: on every rank, if the set cannot be read or none of its images can be decoded.
    """

    def pairs() -> Iterator[PairBatch]:
        for pixels, captions, unreadable in batches(dataset, image_size, batch_size):
            owners = [image for image, texts in enumerate(captions) for _ in texts]
            tokens = tokenize([text for texts in captions for text in texts])
            yield pixels, tokens, torch.tensor(owners, dtype=torch.int64), unreadable

    results, unreadable = _retrieve(encoder, pairs(), dataset.name)
    if not results:
        raise InputError(f"evaluation set {dataset.name}: {nothing_readable(unreadable)}")
    return results


def retrieve_pairs(encoder: CandidateEncoder, pairs: Iterable[Batch], image_size: int) -> list[RetrievalResult]:
    """As `retrieve`, on pairs held out of the training data, with one caption per image. Collective.

    The `accuracy` of a result, top-1 retrieval in percent, selects among candidates where there is no labelled set.

    Args:
        encoder: encodes with every candidate.
        pairs: this rank's batches; their number and sizes may differ between ranks.
        image_size: side of the images in pixels.

    Raises:
        InputError: no rank has a pair.
    """
    nothing = (torch.empty((0, 3, image_size, image_size), dtype=torch.uint8), pack([]), torch.empty(0).long(), 0)
    own = ((batch.images, batch.text, torch.arange(batch.images.shape[0]), 0) for batch in pairs)
    results, _ = _retrieve(encoder, (nothing if item is None else item for item in in_lockstep(own)), HELD_OUT)
    if not results:
        raise InputError(f"{HELD_OUT}: no pairs to retrieve; hold some out, or name a selection dataset")
    return results


def _retrieve(encoder: CandidateEncoder, pairs: Iterable[PairBatch], name: str) -> tuple[list[RetrievalResult], int]:
    """One result per candidate, or none if there are no images, and the number of unreadable images skipped."""
    image_sharers: list[int] = []
    text_sharers: list[int] = []
    image_parts: dict[int, list[Tensor]] = {}
    text_parts: dict[int, list[Tensor]] = {}
    picture_parts, caption_parts, owner_parts = [], [], []
    left_out = 0
    for pixels, tokens, owners, unreadable in pairs:
        left_out += unreadable
        image_features, text_features = encoder.images(pixels), encoder.texts(tokens)
        image_sharers = image_sharers or first_sharers(image_features)
        text_sharers = text_sharers or first_sharers(text_features)
        for parts, sharers, features in (
            (image_parts, image_sharers, image_features),
            (text_parts, text_sharers, text_features),
        ):
            for first in set(sharers):
                parts.setdefault(first, []).append(features[first])
        pictures = _digests(pixels.flatten(1))
        picture_parts.append(pictures)
        caption_parts.append(_digests(tokens.ids.split(tokens.cu_seqlens.diff().tolist())))
        owner_parts.append(pictures[owners])
    if not image_sharers:  # no rank has a batch
        return [], 0

    device = image_parts[0][0].device
    pictures, captions, owners = (torch.cat(p).to(device) for p in (picture_parts, caption_parts, owner_parts))
    left_out = int(all_reduce_sum(torch.tensor([left_out], device=device)))
    answers = _Answers(pictures, captions, owners)
    if not answers.pictures:
        return [], left_out
    results: dict[tuple[int, int], RetrievalResult] = {}
    for pair in dict.fromkeys(zip(image_sharers, text_sharers, strict=True)):
        images, texts = torch.cat(image_parts[pair[0]]), torch.cat(text_parts[pair[1]])
        hits = torch.stack([answers.caption_hits(images, texts), answers.picture_hits(texts, images)])
        image_hits, text_hits = all_reduce_sum(hits).tolist()
        results[pair] = RetrievalResult(
            dataset=name,
            pictures=answers.pictures,
            captions=answers.captions,
            image_to_text={k: 100 * h / answers.pictures for k, h in zip(RECALL_AT, image_hits, strict=True)},
            text_to_image={k: 100 * h / answers.captions for k, h in zip(RECALL_AT, text_hits, strict=True)},
            unreadable=left_out,
        )
    return [results[pair] for pair in zip(image_sharers, text_sharers, strict=True)], left_out


def _digests(items: Iterable[Tensor]) -> Tensor:
    """A 64-bit digest of each tensor, (n,) int64; equal tensors have equal digests."""
    digests = [hashlib.blake2b(item.numpy().tobytes(), digest_size=8).digest() for item in items]
    return torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests], dtype=torch.int64)


class _Answers:
    """Which captions are correct for which images, over all ranks.

    Args:
        pictures: digests of this rank's images, (n,).
        captions: digests of this rank's captions, (m,).
        owners: digest of each caption's image, (m,).
    """

    def __init__(self, pictures: Tensor, captions: Tensor, owners: Tensor) -> None:
        all_pictures, all_captions, all_owners = map(ragged_all_gather, (pictures, captions, owners))
        self.pictures, self.captions = all_pictures.numel(), all_captions.numel()
        picture_values, self._picture_numbers = all_pictures.unique(return_inverse=True)
        caption_values, self._caption_numbers = all_captions.unique(return_inverse=True)
        self._local_pictures = torch.searchsorted(picture_values, pictures)
        self._local_captions = torch.searchsorted(caption_values, captions)
        owner_numbers = torch.searchsorted(picture_values, all_owners)
        self._right = torch.stack([owner_numbers, self._caption_numbers], dim=1).unique(dim=0)  # (R, 2), sorted

    def caption_hits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Number of this rank's images with a correct caption among the first k, (len(RECALL_AT),). Collective.

        Args:
            images: features of this rank's images, (n, e).
            texts: features of this rank's captions, (m, e); the captions of all ranks are searched.
        """
        return _hits(images, self._local_pictures, _one_each(texts, self._caption_numbers), self._right)

    def picture_hits(self, texts: Tensor, images: Tensor) -> Tensor:
        """As `caption_hits`, from captions to images."""
        right = self._right.flip(1)
        right = right[right[:, 0].argsort(stable=True)]
        return _hits(texts, self._local_captions, _one_each(images, self._picture_numbers), right)


def _one_each(features: Tensor, numbers: Tensor) -> Tensor:
    """Features gathered from all ranks, one row per distinct number; duplicates share a number."""
    gathered = ragged_all_gather(features)  # (N, e)
    first = numbers.new_full((int(numbers.max()) + 1,), numbers.numel())
    first.scatter_reduce_(0, numbers, torch.arange(numbers.numel(), device=numbers.device), "amin")
    return gathered[first]


def _hits(queries: Tensor, query_numbers: Tensor, answers: Tensor, right: Tensor) -> Tensor:
    """Number of queries with a correct answer among the first k, (len(RECALL_AT),), computed in blocks of queries.

    Args:
        queries: features of the queries, (q, e).
        query_numbers: number of each query in `right`, (q,).
        answers: features of the answers, (a, e), indexed by answer number.
        right: pairs of a query number and a correct answer's number, (R, 2), sorted by query number.
    """
    hits = torch.zeros(len(RECALL_AT), dtype=torch.int64, device=queries.device)
    limits = torch.tensor(RECALL_AT, device=queries.device)
    counts = right[:, 0].bincount()  # correct answers per query number
    starts = counts.cumsum(0) - counts
    rows = max(1, BLOCK // answers.shape[0])
    for block, numbers in zip(queries.split(rows), query_numbers.split(rows), strict=True):
        similarities = block @ answers.T  # (b, a)
        lengths = counts[numbers]
        row = torch.arange(len(numbers), device=queries.device).repeat_interleave(lengths)
        within = torch.arange(len(row), device=queries.device) - (lengths.cumsum(0) - lengths)[row]
        right_similarities = similarities[row, right[starts[numbers][row] + within, 1]]
        best = similarities.new_full((len(numbers),), -torch.inf)
        best.scatter_reduce_(0, row, right_similarities, "amax")
        # Wrong answers that are not below the best correct one: ties count, and so do NaNs.
        ahead = (~(similarities < best[:, None])).sum(1)
        ahead -= torch.zeros_like(ahead).index_add_(0, row, (~(right_similarities < best[row])).long())
        ahead[best.isnan()] = max(RECALL_AT)
        hits += (ahead[:, None] < limits).sum(0)
    return hits
