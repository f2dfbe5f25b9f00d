"""Intervals that hold for every number of rows, since payoffs are bounded.

No large-sample argument is used: for independent rows with a payoff in a known range both cover at
least as often as they say. The price is width: see the table in ``docs/evaluation.md``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import scipy

from croupier.offline.ope.intervals import require_confidence
from croupier.policy.errors import NoIntervalError, NotEnoughDataError

if TYPE_CHECKING:
    from croupier.offline.ope.intervals import FloatArray, Moments, Unseen

__all__ = ("Refusal", "clopper_pearson_interval", "empirical_bernstein_interval")

Refusal: TypeAlias = Literal[
    "keep-probabilities-vary", "weights-unbounded", "payoffs-not-binary", "reward-model"
]
"""Why an interval doesn't apply, the `reason` of a NoIntervalError."""

# A share of the payoff's square range: payoffs that are binary but for rounding.
_BINARY = 1e-9


def empirical_bernstein_interval(
    moments: Moments, unseen: Unseen, confidence: float, value_range: tuple[float, float]
) -> tuple[float, float]:
    r"""Empirical Bernstein interval of a policy's value.

    For n independent x in an interval of length R, with variance estimate V, with probability
    ``1 - delta``::

        mean(x) - E[x] <= sqrt(2 V ln(2/delta) / n) + 7 R ln(2/delta) / (3 (n - 1))

    Since ``E[w] = 1`` is known, ``x = u - b (w - 1)`` has the value as its mean for every b. Both
    ends are the best of ``b`` in {smallest residual, 0, largest residual}, each at its share of
    the error probability; for rewards in [0, 1] they are what comes of w r, and of one minus
    what comes of w (1 - r).

    Source: Maurer & Pontil, "Empirical Bernstein Bounds and Sample Variance Penalization", COLT
    2009, theorem 4. Beyond the source: the choice of b.

    Parameters
    ----------
    moments
        Of the columns (c, c w_1, ..., c w_J, c u), as for
        :func:`~croupier.offline.ope.intervals.empirical_likelihood_interval`.
    unseen
        What a row can be; the largest weight must be finite.
    confidence
        Nominal coverage, in (0, 1).
    value_range
        Smallest and largest possible value; the interval is cut to it.

    Raises
    ------
    InvalidInputError
        If `confidence` is not in (0, 1).
    NotEnoughDataError
        If there are fewer than 2 rows.
    NoIntervalError
        If weights are unbounded, or keep probabilities vary: the value is then a ratio.
    """
    require_confidence(confidence)
    moments, low, high = _net(moments, unseen)
    if not math.isfinite(high - low):
        raise NoIntervalError(
            "weights-unbounded", "expected a finite weight_range for empirical Bernstein"
        )
    offset = unseen.offset[1] - unseen.offset[0]
    candidates = sorted({unseen.residual[0], 0.0, unseen.residual[1]})
    # Two ends, each the best of so many bounds.
    error = (1.0 - confidence) / (2 * len(candidates))
    log = math.log(2.0 / error)
    lowers, uppers = [], []
    for base in candidates:
        change = np.array([[1.0, 0.0, 0.0], [base * _expected(unseen), -base, 1.0]])
        moved = moments.transform(change)
        residuals = [residual - base for residual in unseen.residual]
        ends = [weight * residual for weight in (low, high) for residual in residuals]
        span = max(ends) - min(ends) + offset
        mean, variance = float(moved.mean[1]), float(moved.scatter[1, 1]) / (moments.n - 1)
        half = math.sqrt(2.0 * variance * log / moments.n) + 7.0 * span * log / (
            3.0 * (moments.n - 1)
        )
        lowers.append(mean - half)
        uppers.append(mean + half)
    lower, upper = np.clip((max(lowers), min(uppers)), *value_range)
    return float(lower), float(upper)


def clopper_pearson_interval(
    moments: Moments, unseen: Unseen, confidence: float, value_range: tuple[float, float]
) -> tuple[float, float]:
    """Exact binomial interval, for payoffs that are 0 or one constant.

    With rewards in {0, 1} and weights in {0, W}, as a deterministic policy has them on a log of
    uniform draws, ``w r`` is W with probability value / W, so that the number of rows with
    ``w r = W`` is binomial. Generally ``w (r - smallest reward)`` must be 0 or its largest
    possible value.

    Source: Clopper & Pearson, "The use of confidence or fiducial limits illustrated in the case
    of the binomial", Biometrika 1934. The package vw-estimators divides the sum of ``w r`` by the
    largest weight for weights of any kind, which has no binomial behind it; here it is refused.

    Parameters
    ----------
    moments, unseen, confidence, value_range
        As for :func:`empirical_bernstein_interval`, of one policy.

    Raises
    ------
    InvalidInputError
        If `confidence` is not in (0, 1).
    NotEnoughDataError
        If there are fewer than 2 rows.
    NoIntervalError
        If payoffs are not of two kinds, weights are unbounded, keep probabilities vary, or there
        is a reward model.
    """
    require_confidence(confidence)
    moments, _, top = _net(moments, unseen)
    least, most = unseen.residual
    if len(unseen.signs) != 1 or unseen.offset != (0.0, 0.0):
        raise NoIntervalError(
            "reward-model", "expected IPS of one policy for the binomial interval"
        )
    if not math.isfinite(top):
        raise NoIntervalError(
            "weights-unbounded", "expected a finite weight_range for the binomial interval"
        )
    size = top * (most - least)
    moved = moments.transform(np.array([[0.0, -least, 1.0]]))
    mean, square = float(moved.mean[0]), float(moved.scatter[0, 0]) / moments.n
    # x in [0, size] is 0 or size if, and only if, x (size - x) is 0 on average.
    if mean * size - (square + mean**2) > _BINARY * size**2:
        raise NoIntervalError(
            "payoffs-not-binary", f"expected weighted rewards of 0 or {size:g} only"
        )
    hits = round(moments.n * mean / size)
    error = (1.0 - confidence) / 2.0
    n = moments.n
    low = float(scipy.stats.beta.ppf(error, hits, n - hits + 1)) if hits > 0 else 0.0
    high = float(scipy.stats.beta.isf(error, hits + 1, n - hits)) if hits < n else 1.0
    lower, upper = np.clip((least + size * low, least + size * high), *value_range)
    return float(lower), float(upper)


def _expected(unseen: Unseen) -> float:
    """Mean of the net weight: 1 for a value, 0 for a difference."""
    return float(sum(unseen.signs))


def _net(moments: Moments, unseen: Unseen) -> tuple[Moments, float, float]:
    """Moments of (1, net weight, payoff) of a log without subsampling, and the weight's ends."""
    if moments.n < 2:
        raise NotEnoughDataError(f"an interval needs at least 2 rows, got {moments.n}")
    keep = float(moments.mean[0])
    if float(moments.scatter[0, 0]) > _BINARY * moments.n * keep**2:
        raise NoIntervalError(
            "keep-probabilities-vary", "expected rows that were all kept with one probability"
        )
    # A constant keep weight is a factor of every sum, and stands for nothing.
    change: FloatArray = np.zeros((3, len(moments.mean)))
    change[0, 0] = change[2, -1] = 1.0 / keep
    change[1, 1:-1] = np.array(unseen.signs, dtype=np.float64) / keep
    ends = [
        sorted(sign * weight for weight in (min(weights), max(weights)))
        for sign, weights in zip(unseen.signs, unseen.weights, strict=True)
    ]
    return moments.transform(change), sum(end[0] for end in ends), sum(end[1] for end in ends)
