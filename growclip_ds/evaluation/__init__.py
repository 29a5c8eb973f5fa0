"""Zero-shot classification and retrieval of many candidates at once, spread over the ranks."""

from __future__ import annotations

from collections.abc import Callable

from growclip_ds.evaluation.classification import classify
from growclip_ds.evaluation.datasets import ClassificationSet, EvaluationSet, RetrievalSet, load_evaluation_set
from growclip_ds.evaluation.encoder import CandidateEncoder, ModelEncoder
from growclip_ds.evaluation.retrieval import retrieve, retrieve_pairs
from growclip_ds.model.packed import PackedTokens
from growclip_ds.results import ClassificationResult, RetrievalResult

__all__ = [
    "CandidateEncoder",
    "ClassificationResult",
    "ClassificationSet",
    "EvaluationSet",
    "ModelEncoder",
    "RetrievalResult",
    "RetrievalSet",
    "classify",
    "evaluate",
    "load_evaluation_set",
    "retrieve",
    "retrieve_pairs",
]


def evaluate(
    encoder: CandidateEncoder,
    dataset: EvaluationSet,
    tokenize: Callable[[list[str]], PackedTokens],
    image_size: int,
    batch_size: int,
) -> list[ClassificationResult] | list[RetrievalResult]:
    """What the set is for: see `classify` and `retrieve`."""
    if isinstance(dataset, ClassificationSet):
        return classify(encoder, dataset, tokenize, image_size, batch_size)
    return retrieve(encoder, dataset, tokenize, image_size, batch_size)
