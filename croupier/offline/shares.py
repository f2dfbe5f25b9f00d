"""Shares of rows, and means of numbers in [0, 1], with an interval for the rows that there are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from scipy import stats

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ("effective_rows", "wilson_interval")


def effective_rows(weights: NDArray[np.float64]) -> float:
    """Effective sample size ``(Σ c)² / Σ c²`` of rows that count c times (Kish, 1965).

    Parameters
    ----------
    weights
        How many decisions every row stands for, shape (n,), n ≥ 1, positive.
    """
    # Whole numbers, where all rows stand for as many, so that n comes out as n.
    counted = weights / weights.min()
    return float(counted.sum() ** 2 / (counted @ counted))


def wilson_interval(p: float, n: float, confidence: float) -> tuple[float, float]:
    """Interval of a share p of n rows.

    ``(p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)`` (Wilson, 1927). A mean of numbers in
    [0, 1] varies less than one of zeros and ones with the same mean, so it is covered too.

    Parameters
    ----------
    p
        Share or mean, in [0, 1].
    n
        Rows, or their effective number, at least 1.
    confidence
        In (0, 1).
    """
    z = float(stats.norm.isf((1.0 - confidence) / 2.0))
    centre, scale = p + z * z / (2 * n), 1.0 + z * z / n
    half = z * math.sqrt(p * (1.0 - p) / n + z * z / (4 * n * n))
    # Rounding must not put an end on the wrong side of the value.
    return min(max((centre - half) / scale, 0.0), p), max(min((centre + half) / scale, 1.0), p)
