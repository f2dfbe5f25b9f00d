"""Auditors, panels of them, and what violates individual fairness; pure definitions.

A policy treats two alike people alike if their probabilities of an action differ by no more than
the people do: ``π(x) - π(x') ≤ d(x, x') + α`` (Dwork et al., "Fairness Through Awareness", 2012).
How much they differ is an auditor's to say, and several need not agree. A panel sees a violation if
a share of at least γ of its auditors do (Bechavod, Jung & Wu, 2020; Bechavod & Roth, 2022), which
is the same as a violation of one distance, an order statistic of theirs: see
:func:`panel_distance`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import scipy
from numpy.typing import NDArray

from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = (
    "ABSTAINS",
    "Auditor",
    "FloatArray",
    "Gap",
    "JudgedPairs",
    "Metric",
    "NamedGap",
    "Panel",
    "gap_of",
    "panel_distance",
    "required_votes",
    "violates",
)

FloatArray: TypeAlias = NDArray[np.float64]

ABSTAINS = math.nan
"""Distance of an auditor who doesn't say anything about a pair."""

Gap: TypeAlias = Callable[[FloatArray, FloatArray], FloatArray]
"""How differently two decisions are treated, in [0, 1]: of probabilities of shape (..., K)."""

NamedGap: TypeAlias = str
"""``any`` or ``total_variation``, see :func:`gap_of`."""

# γ m is a whole number for most that people write, but for the last bits of the product.
_ROUNDING = 1e-9


class Auditor(Protocol):
    """Who says how differently two individuals may be treated."""

    def distances(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> FloatArray:
        """Distances of pairs of individuals, given by their rows.

        Parameters
        ----------
        first, second
            Rows of the two of each pair, shape (n,).

        Returns
        -------
        FloatArray
            In [0, 1]; :data:`ABSTAINS` where the auditor says nothing. Shape (n,).
        """
        ...

    def block(self, rows: NDArray[np.int64]) -> FloatArray:
        """Distances of some individuals, shape (b,), to all n, shape (b, n)."""
        ...


class Metric:
    """A distance in a space of features: ``d(x, x') = min(1, ‖φ(x) - φ(x')‖₂)``.

    Parameters
    ----------
    places
        ``φ`` of every individual, shape (n, D): features times their weights, so that a Mahalanobis
        distance is one, ``φ(x) = L z(x)`` with ``M = LᵀL``.
    """

    def __init__(self, places: FloatArray) -> None:
        self.places = np.ascontiguousarray(places, dtype=np.float64)

    def distances(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> FloatArray:
        """Distances of pairs, see :class:`Auditor`."""
        apart = self.places[first] - self.places[second]
        return np.asarray(np.minimum(np.sqrt((apart * apart).sum(axis=-1)), 1.0))

    def block(self, rows: NDArray[np.int64]) -> FloatArray:
        """Distances of some individuals to all n, shape (b, n)."""
        away = scipy.spatial.distance.cdist(self.places[rows], self.places)
        return np.asarray(np.minimum(away, 1.0, out=away))


class JudgedPairs:
    """A person, who has judged some pairs, in either order, and abstains on all others.

    Parameters
    ----------
    size
        Number of individuals.
    first, second
        Rows of the pairs that were judged, shape (m,).
    distances
        The judgements, in [0, 1], shape (m,). The last one of a pair holds.

    Raises
    ------
    InvalidInputError
        If a distance isn't in [0, 1].
    """

    def __init__(
        self, size: int, first: ArrayLike, second: ArrayLike, distances: ArrayLike
    ) -> None:
        one, two = (np.asarray(each, dtype=np.int64) for each in (first, second))
        judged = np.asarray(distances, dtype=np.float64)
        if not ((judged >= 0.0) & (judged <= 1.0)).all():
            raise InvalidInputError("distances", "expected numbers in [0, 1]")
        self.size = size
        last = dict(zip(self._keys(one, two).tolist(), judged.tolist(), strict=True))
        self._known = np.array(sorted(last), dtype=np.int64)
        self._judged = np.array([last[key] for key in self._known.tolist()], dtype=np.float64)

    @property
    def keys(self) -> NDArray[np.int64]:
        """``min(i, j) n + max(i, j)`` of the pairs that were judged, in order, shape (m,)."""
        return self._known

    @property
    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the pairs that were judged, each once, shape (m,)."""
        return self._known // self.size, self._known % self.size

    def distances(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> FloatArray:
        """Judgements of pairs, see :class:`Auditor`."""
        keys = self._keys(first, second)
        found = np.full(keys.shape, ABSTAINS)
        if len(self._known):
            at = np.minimum(np.searchsorted(self._known, keys), len(self._known) - 1)
            judged = self._known[at] == keys
            found[judged] = self._judged[at[judged]]
        return found

    def block(self, rows: NDArray[np.int64]) -> FloatArray:
        """Judgements of some individuals with all n, shape (b, n)."""
        found = np.full((len(rows), self.size), ABSTAINS)
        place = np.full(self.size, -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        for one, two in (self.pairs, self.pairs[::-1]):
            there = place[one] >= 0
            found[place[one[there]], two[there]] = self._judged[there]
        return found

    def _keys(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(np.minimum(first, second) * self.size + np.maximum(first, second))


class Panel:
    """Several auditors who decide by a share, see :func:`panel_distance`.

    Parameters
    ----------
    auditors
        At least one.
    gamma
        Share γ in (0, 1] of those that judge a pair.

    Raises
    ------
    InvalidInputError
        If γ is out of range, or there is no auditor.
    """

    def __init__(self, auditors: Sequence[Auditor], gamma: float) -> None:
        required_votes(gamma, len(auditors))
        self.auditors = tuple(auditors)
        self.gamma = gamma

    def each(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> FloatArray:
        """Distances of pairs by every auditor, shape (m, ...)."""
        return np.stack([each.distances(first, second) for each in self.auditors])

    def distances(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> FloatArray:
        """Distances of pairs; infinite where all auditors abstain."""
        return panel_distance(self.each(first, second), self.gamma)

    def block(self, rows: NDArray[np.int64]) -> FloatArray:
        """Distances of some individuals, shape (b,), to all n, shape (b, n)."""
        return panel_distance([each.block(rows) for each in self.auditors], self.gamma)


def required_votes(gamma: float, auditors: int) -> int:
    """How many of m auditors have to see a violation: the least k with ``k / m ≥ γ``, at least 1.

    Parameters
    ----------
    gamma
        Share γ in (0, 1]: ``1 / m`` and less asks the strictest auditor, 1 for unanimity.
    auditors
        m ≥ 1.

    Raises
    ------
    InvalidInputError
        If a parameter is not of these.
    """
    if not 0.0 < gamma <= 1.0:
        raise InvalidInputError("gamma", f"expected a number in (0, 1], got {gamma}")
    if auditors < 1:
        raise InvalidInputError("auditors", f"expected at least 1, got {auditors}")
    return max(1, math.ceil(gamma * auditors - _ROUNDING))


def panel_distance(distances: ArrayLike, gamma: float) -> FloatArray:
    """The one distance that a panel comes to.

    A share of at least γ of the m auditors sees an α-violation of a pair if and only if
    ``π(x) - π(x') > d_(k) + α`` with ``d_(1) ≤ … ≤ d_(m)`` and ``k = ⌈γ m⌉``: the k-th smallest
    distance is exceeded exactly if k of them are (Bechavod & Roth, 2022). Those who abstain are no
    part of the panel of that pair, and the share is one of those who don't.

    Parameters
    ----------
    distances
        Of m auditors, shape (m, ...); :data:`ABSTAINS` where one says nothing.
    gamma
        Share γ in (0, 1].

    Returns
    -------
    FloatArray
        Of shape (...); infinite where all abstain, which nothing violates.

    Raises
    ------
    InvalidInputError
        If γ is out of range, or there is no auditor.
    """
    given = np.asarray(distances, dtype=np.float64)
    auditors = given.shape[0] if given.ndim else 0
    votes = required_votes(gamma, auditors)
    judging = np.isfinite(given).sum(axis=0)
    if (judging == auditors).all():
        # The usual case, for which there is no need to sort.
        if votes == auditors:
            return np.asarray(given.max(axis=0))
        if votes == 1:
            return np.asarray(given.min(axis=0))
        return np.asarray(np.partition(given, votes - 1, axis=0)[votes - 1])
    needed = [1, *(required_votes(gamma, m) for m in range(1, auditors + 1))]
    # NaNs come last.
    ordered = np.sort(given, axis=0)
    at = np.asarray(needed, dtype=np.int64)[judging] - 1
    found = np.take_along_axis(ordered, at[None, ...], axis=0)[0]
    return np.asarray(np.where(judging > 0, found, np.inf), dtype=np.float64)


def violates(gap: ArrayLike, distance: ArrayLike, alpha: float) -> NDArray[np.bool_]:
    """Whether pairs are α-violations, ``|π(x) - π(x')| > d(x, x') + α``.

    Parameters
    ----------
    gap
        How differently they are treated, in [0, 1], see :func:`gap_of`.
    distance
        How differently they may be, of the same shape; an auditor's or a panel's.
    alpha
        Slack α ≥ 0.
    """
    return np.asarray(np.asarray(gap) > np.asarray(distance) + alpha)


def gap_of(kind: NamedGap) -> Gap:
    """How differently two decisions are treated, from their probabilities of K actions.

    ``any`` is ``max_a |p_a - p'_a|``: the pair violates if it does for any of the actions, and of
    K = 1 action it is that one's difference. ``total_variation`` is ``Σ_a |p_a - p'_a| / 2``: the
    largest difference of the probabilities of a set of actions.

    Raises
    ------
    InvalidInputError
        If it is none of these.
    """
    if kind == "any":
        return _largest
    if kind == "total_variation":
        return _total_variation
    raise InvalidInputError("gap", f"expected any or total_variation, got {kind!r}")


def _largest(first: FloatArray, second: FloatArray) -> FloatArray:
    return np.asarray(np.abs(first - second).max(axis=-1))


def _total_variation(first: FloatArray, second: FloatArray) -> FloatArray:
    return np.asarray(np.abs(first - second).sum(axis=-1) / 2.0)
