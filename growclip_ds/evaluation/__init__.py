"""Zero-shot classification and retrieval for many candidates at once, distributed over the ranks."""

from __future__ import annotations

from growclip_ds.evaluation.classification import classify
from growclip_ds.evaluation.datasets import ClassificationSet, EvaluationSet, RetrievalSet, load_evaluation_set
from growclip_ds.evaluation.encoder import CandidateEncoder, ModelEncoder, Tokenize
from growclip_ds.evaluation.retrieval import retrieve, retrieve_pairs
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
    tokenize: Tokenize,
    image_size: int,
    batch_size: int,
) -> list[ClassificationResult] | list[RetrievalResult]:
    """Evaluates every candidate on a set, by `classify` or `retrieve` according to its type."""
    if isinstance(dataset, ClassificationSet):
        return classify(encoder, dataset, tokenize, image_size, batch_size)
    return retrieve(encoder, dataset, tokenize, image_size, batch_size)
