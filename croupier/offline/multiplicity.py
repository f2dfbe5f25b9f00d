"""Many tests or intervals at once: of a hundred, five miss at 95 % though nothing is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ("Correction", "bonferroni", "holm", "holm_p_values")

Correction: TypeAlias = Literal["none", "bonferroni", "holm"]
"""``bonferroni``: all intervals of a table hold at once. ``holm``: besides, differences have
p-values, corrected step by step, which find more than the intervals do."""


def bonferroni(confidence: float, count: int) -> float:
    """Confidence of each of `count` intervals that are to hold at once: ``1 - (1 - c) / count``.

    Source: Dunn, "Multiple Comparisons among Means", JASA 1961.
    """
    return 1.0 - (1.0 - confidence) / max(count, 1)


def holm_p_values(p_values: Iterable[float]) -> NDArray[np.float64]:
    """p-values to be held against the level of all tests together, in the order of the given ones.

    ``max over j <= i of min(1, (m - j + 1) p_(j))`` for the i-th smallest of m.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal
    of Statistics 1979.
    """
    p = np.array(list(p_values), dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.minimum(p[order] * np.arange(len(p), 0, -1), 1.0))
    found = np.empty(len(p))
    found[order] = stepped
    return found


def holm(p_values: Iterable[float], level: float) -> NDArray[np.bool_]:
    """Which hypotheses the step-down procedure of Holm (1979) rejects."""
    return holm_p_values(p_values) <= level
