"""Growth architecture selection (phase 2, Section 3.4): ranks candidates by Eq. 7."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from growclip_ds.architecture import Architecture


@dataclass(frozen=True)
class Candidate:
    """An evaluated member of a growth space.

    Attributes:
        architecture: its architecture.
        parameters: P(ψ), number of parameters without the temperature.
        accuracy: A(ψ) in percent.
        metric: value of Eq. 7.
    """

    architecture: Architecture
    parameters: int
    accuracy: float
    metric: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Candidate:
        return cls(**values | {"architecture": Architecture(**values["architecture"])})


def composite_metric(
    accuracy: float,
    parameters: int,
    supernet_parameters: int,
    previous_samples: int,
    samples: int,
    alpha: float = 0.5,
) -> float:
    """Eq. 7: A(ψ) + α · N^{t-1}/N^t · P(Ψ)/P(ψ).

    Args:
        accuracy: A(ψ), zero-shot top-1 in percent.
        parameters: P(ψ), number of parameters of the candidate.
        supernet_parameters: P(Ψ), number of parameters of the supernet.
        previous_samples: N^{t-1}, number of samples of the previous growth step.
        samples: N^t, number of samples of this growth step.
        alpha: weight of the second term, which prefers small models, less so the more the data has grown.
    """
    return accuracy + alpha * previous_samples / samples * supernet_parameters / parameters


def rank_candidates(
    accuracies: dict[Architecture, float],
    count: Callable[[Architecture], int],
    supernet: Architecture,
    previous_samples: int,
    samples: int,
    alpha: float,
) -> list[Candidate]:
    """Every candidate with its value of Eq. 7, best first; of equal ones, the one with fewer parameters comes first.

    Args:
        accuracies: A(ψ) of every candidate, in percent.
        count: returns an architecture's number of parameters.
        supernet: Ψ, the supernet's architecture.
        previous_samples, samples, alpha: see `composite_metric`.
    """
    whole = count(supernet)
    rows = []
    for architecture, accuracy in accuracies.items():
        parameters = count(architecture)
        metric = composite_metric(accuracy, parameters, whole, previous_samples, samples, alpha)
        rows.append(Candidate(architecture, parameters, accuracy, metric))
    return sorted(rows, key=lambda row: (-row.metric, row.parameters, row.architecture))
