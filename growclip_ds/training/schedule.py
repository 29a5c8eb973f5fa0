"""The learning rate of a phase: linear warm-up, then a cosine to zero (Section 4.1)."""

from __future__ import annotations

import math


def learning_rate(iteration: int, iterations: int, peak: float, warmup_iterations: int) -> float:
    """The learning rate of one iteration.

    Args:
        iteration: from 0.
        iterations: of the phase.
        peak: reached at the end of the warm-up.
        warmup_iterations: length of the warm-up, but never more than a tenth of the phase.
    """
    warmup = min(warmup_iterations, iterations // 10)
    if iteration < warmup:
        return peak * (iteration + 1) / warmup
    progress = (iteration - warmup) / max(1, iterations - warmup)
    return peak * (1 + math.cos(math.pi * progress)) / 2
