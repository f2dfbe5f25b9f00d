"""How many rows have which importance weight: counts between powers of two, which add up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ("WEIGHT_EDGES", "WeightHistogram")

WEIGHT_EDGES: tuple[float, ...] = tuple(2.0**power for power in range(-6, 11))
"""Ends of the bins, ascending; below the first and above the last there is one more bin each."""


class WeightHistogram(msgspec.Struct, frozen=True, kw_only=True):
    """Decisions of the stream by importance weight.

    Attributes
    ----------
    zero
        With weight 0.
    counts
        With a weight in (0, e_0], (e_0, e_1], …, (e_16, ∞), where e are :data:`WEIGHT_EDGES`; 18
        numbers. Every row counts ``1 / keep_prob`` times.
    """

    zero: float
    counts: tuple[float, ...]

    @classmethod
    def of(cls, weights: NDArray[np.float64], stands_for: NDArray[np.float64]) -> WeightHistogram:
        """Count rows.

        Parameters
        ----------
        weights
            Importance weights, shape (n,), at least 0.
        stands_for
            How many decisions every row stands for, shape (n,), positive.
        """
        played = weights > 0.0
        bins = np.searchsorted(np.array(WEIGHT_EDGES), weights[played], side="left")
        counts = np.bincount(bins, stands_for[played], len(WEIGHT_EDGES) + 1)
        return cls(zero=float(stands_for[~played].sum()), counts=tuple(counts.tolist()))
