"""Which share of the pairs of decisions violate, with an interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from croupier.offline.shares import wilson_interval
from croupier.policy.errors import NotEnoughDataError
from croupier.policy.fairness.auditors import FloatArray, gap_of, violates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from croupier.policy.fairness.auditors import NamedGap, Panel

__all__ = ("PairSums", "ViolationRate", "pair_blocks", "pairs_rate", "violation_rate")

_PAIRS_AT_ONCE = 500_000


class ViolationRate(msgspec.Struct, frozen=True, kw_only=True):
    """The probability that two decisions violate, among pairs that an auditor judges.

    Attributes
    ----------
    value
        ``θ = P(|π(X) - π(X')| > d(X, X') + α)`` for two decisions X, X' that are drawn at random.
    lower, upper
        Its interval.
    confidence
        Of the interval, in (0, 1).
    decisions, pairs
        Compared decisions, and their pairs that somebody judges.
    violations
        Pairs that violate.
    effective_pairs
        Of how many independent pairs the estimate is worth, see :func:`violation_rate`.
    """

    value: float
    lower: float
    upper: float
    confidence: float
    decisions: int
    pairs: int
    violations: int
    effective_pairs: float


class PairSums(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the pairs of n weighted decisions, with what each decision has in them.

    Attributes
    ----------
    violating, judged
        ``A_i = Σ_{j≠i} w_j h_ij`` and ``J_i = Σ_{j≠i} w_j j_ij``, shape (n,): h_ij says whether the
        pair violates, j_ij whether anybody judges it.
    violations, pairs
        ``Σ_{i<j} h_ij`` and ``Σ_{i<j} j_ij``.
    """

    violating: FloatArray
    judged: FloatArray
    violations: int
    pairs: int

    def rate(self, weights: FloatArray, confidence: float) -> ViolationRate:
        """See :func:`violation_rate`."""
        n = len(weights)
        over, under = weights * self.violating, weights * self.judged
        top, bottom = over.sum() / 2.0, under.sum() / 2.0
        if not bottom > 0.0:
            raise NotEnoughDataError("no pair of these decisions is judged by anybody")
        value = float(top / bottom)
        # Hoeffding (1963): of n decisions there are n/2 pairs that have none in common.
        independent = min(n / 2.0, float(self.pairs))
        left = bottom - under
        without = np.divide(top - over, left, out=np.full(n, value), where=left > 0.0)
        variance = (n - 1) / n * float(((without - without.mean()) ** 2).sum())
        spread = value * (1.0 - value)
        effective = spread / variance if variance > 0.0 and spread > 0.0 else independent
        # Few violations may come of few decisions, and what these vary by is known badly.
        effective = min(max(effective, 1.0), float(max(self.pairs, 1)))
        lower, upper = wilson_interval(value, _less_sure(effective, over), confidence)
        return ViolationRate(
            value=value,
            lower=lower,
            upper=upper,
            confidence=confidence,
            decisions=n,
            pairs=self.pairs,
            violations=self.violations,
            effective_pairs=effective,
        )


def violation_rate(
    panel: Panel,
    treatments: FloatArray,
    weights: FloatArray,
    *,
    alpha: float,
    gap: NamedGap = "any",
    confidence: float = 0.95,
) -> ViolationRate:
    """Compare all pairs of some decisions, and estimate the rate in what they are a sample of.

    The estimate is a U-statistic of order 2, ``Σ_{i<j} w_i w_j h_ij / Σ_{i<j} w_i w_j j_ij``. Its
    variance is the jackknife's, over decisions (Arvesen, "Jackknifing U-Statistics", 1969), since
    pairs that have a decision in common aren't independent. The interval is Wilson's for as many
    independent pairs as would have that variance, ``θ(1 - θ) / V`` (Korn & Graubard, 1998); where
    no pair violates, or all do, for the n/2 pairs that have no decision in common, whose mean
    varies no less than the U-statistic does (Hoeffding, 1963).

    Parameters
    ----------
    panel
        Over the decisions, by their rows.
    treatments
        Probabilities of K actions, shape (n, K).
    weights
        How many decisions each stands for, shape (n,), positive.
    alpha
        Slack ≥ 0.
    gap
        How treatments are compared, see :func:`~croupier.policy.fairness.auditors.gap_of`.
    confidence
        Of the interval, in (0, 1).

    Raises
    ------
    NotEnoughDataError
        If there are fewer than two decisions, or nobody judges any pair.
    """
    n = len(treatments)
    if n < 2:
        raise NotEnoughDataError(f"pairs need at least two decisions, got {n}")
    violating, judged = np.zeros(n), np.zeros(n)
    violations = pairs = 0
    for rows, gaps, distances in pair_blocks(panel, treatments, gap):
        there = np.isfinite(distances)
        there[np.arange(len(rows)), rows] = False
        bad = violates(gaps, distances, alpha) & there
        violating[rows] = bad @ weights
        judged[rows] = there @ weights
        violations += int(bad.sum())
        pairs += int(there.sum())
    sums = PairSums(
        violating=violating, judged=judged, violations=violations // 2, pairs=pairs // 2
    )
    return sums.rate(weights, confidence)


def pairs_rate(
    panel: Panel,
    treatments: FloatArray,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    *,
    alpha: float,
    gap: NamedGap = "any",
    confidence: float = 0.95,
) -> ViolationRate:
    """The rate among some pairs, such as those that were judged; see :func:`violation_rate`.

    Parameters
    ----------
    panel, treatments, alpha, gap, confidence
        As for all pairs.
    first, second
        Rows of the pairs, each once, shape (m,).

    Raises
    ------
    NotEnoughDataError
        If nobody judges any of them.
    """
    gaps = gap_of(gap)(treatments[first], treatments[second])
    distances = panel.distances(first, second)
    there = np.isfinite(distances)
    bad = violates(gaps, distances, alpha) & there
    rows, at = np.unique(np.concatenate([first, second]), return_inverse=True)
    violating, judged = (
        np.bincount(at, weights=np.tile(each, 2), minlength=len(rows)).astype(np.float64)
        for each in (bad, there)
    )
    sums = PairSums(
        violating=violating, judged=judged, violations=int(bad.sum()), pairs=int(there.sum())
    )
    return sums.rate(np.ones(len(rows)), confidence)


def pair_blocks(
    panel: Panel, treatments: FloatArray, gap: NamedGap
) -> Iterator[tuple[NDArray[np.int64], FloatArray, FloatArray]]:
    """All pairs of decisions, block by block: rows (b,), gaps and distances (b, n)."""
    n, measure = len(treatments), gap_of(gap)
    everyone = np.arange(n)
    at_once = max(1, _PAIRS_AT_ONCE // n)
    for start in range(0, n, at_once):
        rows = everyone[start : start + at_once]
        gaps = measure(treatments[rows][:, None, :], treatments[None, :, :])
        yield rows, gaps, panel.block(rows)


def _less_sure(effective: float, over: FloatArray) -> float:
    """Fewer pairs still where the variance itself rests on few decisions.

    A variance of k degrees of freedom asks for Student's quantile in the place of the normal one,
    which is as if there were ``(z / t_k)²`` as many pairs; k is the effective number of decisions
    that violations are made of, less 1, ``(Σ a)² / Σ a²`` (Kish).
    """
    total = float(over.sum())
    if total == 0.0:
        return effective
    k = max(total * total / float(over @ over) - 1.0, 1.0)
    # The ratio of the 97.5 % quantiles, to second order: (1 + (z² + 1) / 4k)⁻².
    return max(effective / (1.0 + (1.96**2 + 1.0) / (4.0 * k)) ** 2, 1.0)
