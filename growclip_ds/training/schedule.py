"""The learning rate schedule of a phase: linear warm-up, then cosine decay to zero (Section 4.1)."""

from __future__ import annotations

import math


def learning_rate(iteration: int, iterations: int, peak: float, warmup_iterations: int) -> float:
    """The learning rate of one iteration.

    Args:
        iteration: number of the iteration, from 0.
        iterations: number of iterations of the phase.
        peak: learning rate at the end of the warm-up.
        warmup_iterations: length of the warm-up, which is capped at a tenth of the phase.
    """
    warmup = min(warmup_iterations, iterations // 10)
    if iteration < warmup:
        return peak * (iteration + 1) / warmup
    progress = (iteration - warmup) / max(1, iterations - warmup)
    return peak * (1 + math.cos(math.pi * progress)) / 2
