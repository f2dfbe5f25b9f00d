"""Differences between groups: intervals and tests that hold for small groups and rare rewards.

Groups are made of different decisions, so their means are independent. A mean is compared as if its
group had one row more than it has, the one that speaks most against what is to be shown: what a
small group happens not to have seen then counts. Without it, a group of thirty without a click
would be sure never to have one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np
import scipy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from croupier.offline.realised import Moments

    FloatArray: TypeAlias = NDArray[np.float64]

__all__ = ("Contrast", "Gap", "Interval", "contrast", "interval_of", "largest_gaps", "max_t")

_DRAWS = 20_000


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A number with its interval, ``lower <= value <= upper``."""

    value: float
    lower: float
    upper: float


class Contrast(msgspec.Struct, frozen=True, kw_only=True):
    """A group against another one, or against all the rest.

    Attributes
    ----------
    difference
        Of the means, with its interval.
    ratio
        Of the means; None where the second one is 0.
    standard_error
        Of the difference.
    p_value
        Two-sided, of the means' being equal.
    """

    difference: Interval
    ratio: float | None
    standard_error: float
    p_value: float


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """The largest difference among groups, and the smallest ratio.

    Attributes
    ----------
    highest, lowest
        The two groups.
    difference
        Of their means, at least 0.
    ratio
        Smallest mean over largest; None where the largest is 0 or they differ in sign.
    """

    highest: str
    lowest: str
    difference: float
    ratio: float | None


def interval_of(moments: Moments, ends: tuple[float, float], confidence: float) -> Interval:
    """A group's mean with its interval.

    ``m' -/+ t_n sqrt(sum c² (x - m')²) / sum c`` with the rows and one more at the end of the
    range. Where all rows count alike it is the empirical-likelihood interval of
    :func:`~croupier.offline.ope.intervals.empirical_likelihood_interval` without controls.

    Parameters
    ----------
    moments
        Of the group, with at least 2 rows.
    ends
        Smallest and largest possible number, finite.
    confidence
        In (0, 1).
    """
    low, high = _with_row(moments, ends[0]), _with_row(moments, ends[1])
    t = float(scipy.special.stdtrit(moments.rows, 0.5 + confidence / 2.0))
    lower = max(low[0] - t * math.sqrt(low[1]), ends[0])
    upper = min(high[0] + t * math.sqrt(high[1]), ends[1])
    mean = moments.mean
    return Interval(value=mean, lower=min(lower, mean), upper=max(upper, mean))


def contrast(
    first: Moments, second: Moments, ends: tuple[float, float], confidence: float
) -> Contrast:
    """Compare two groups of different decisions by the test of Welch, with a row more on each side.

    Source: Welch, "The Generalization of 'Student's' Problem when Several Different Population
    Variances are Involved", Biometrika 1947.

    Parameters
    ----------
    first, second
        Of the groups, with at least 2 rows each.
    ends
        Smallest and largest possible number, finite.
    confidence
        Of the interval, in (0, 1).
    """
    low, above = _less(first, second, ends, confidence)
    high, below = _less(second, first, ends, confidence)
    value = first.mean - second.mean
    errors = [each.error() or 0.0 for each in (first, second)]
    return Contrast(
        difference=Interval(value=value, lower=min(low, value), upper=max(-high, value)),
        ratio=first.mean / second.mean if second.mean else None,
        standard_error=math.hypot(*errors),
        p_value=min(1.0, 2.0 * min(above, below)),
    )


def largest_gaps(
    names: Sequence[str], means: Mapping[str, Sequence[float]], weights: Sequence[float]
) -> dict[str, Gap]:
    """The largest difference and the smallest ratio of groups' means, by fairlearn.

    Parameters
    ----------
    names
        Of the groups, at least one.
    means
        Of the groups, in whatever is measured.
    weights
        How many decisions every group stands for.
    """
    # Slow to import, with all that it needs.
    from fairlearn.metrics import MetricFrame  # noqa: PLC0415

    frame = MetricFrame(
        metrics=dict.fromkeys(means, _weighted_mean),
        y_true=np.zeros(len(names)),
        y_pred=np.zeros(len(names)),
        sensitive_features=np.asarray(names, dtype=object),
        sample_params={
            measure: {"values": np.asarray(each), "weights": np.asarray(weights)}
            for measure, each in means.items()
        },
    )
    differences = frame.difference(method="between_groups")
    ratios = frame.ratio(method="between_groups")
    found = {}
    for measure, each in means.items():
        by_group, ratio = frame.by_group[measure], float(ratios[measure])
        alike = min(each) * max(each) >= 0.0
        found[measure] = Gap(
            highest=str(by_group.idxmax()),
            lowest=str(by_group.idxmin()),
            difference=float(differences[measure]),
            ratio=ratio if math.isfinite(ratio) and alike else None,
        )
    return found


def _weighted_mean(
    _true: FloatArray, _predicted: FloatArray, values: FloatArray, weights: FloatArray
) -> float:
    return float(np.average(values, weights=weights))


def max_t(
    covariances: Sequence[NDArray[np.float64]],
    pairs: Sequence[tuple[int, int]] | None,
    confidence: float,
    *,
    seed: int = 0,
) -> float:
    """Confidence of single intervals that are to hold at once, as their correlations allow it.

    With q the quantile of ``max_j |Z_j|``, where Z is Gaussian with the correlations of the
    estimates, each interval has the confidence ``2 Phi(q) - 1``: never more than Bonferroni's.

    Source: Hothorn, Bretz & Westfall, "Simultaneous Inference in General Parametric Models",
    Biometrical Journal 2008, the single-step max-t procedure.

    Parameters
    ----------
    covariances
        Of the estimates of every group, each of shape (k, k); groups are independent.
    pairs
        Groups whose estimates are compared, number by number; None takes every group by itself.
    confidence
        That all hold at once, in (0, 1).
    seed
        Of 20,000 Gaussian draws.
    """
    rng = np.random.default_rng(seed)
    drawn = np.stack([_gaussian(each, rng) for each in covariances])
    spread = np.stack([np.diag(each) for each in covariances])
    if pairs is not None:
        one, other = (list(each) for each in zip(*pairs, strict=True))
        drawn, spread = drawn[one] - drawn[other], spread[one] + spread[other]
    varies = spread > 0.0
    if not varies.any():
        return confidence
    scaled = np.abs(drawn.swapaxes(1, 2)[varies]) / np.sqrt(spread[varies])[:, None]
    quantile = float(np.quantile(scaled.max(axis=0), confidence))
    count = int(varies.sum())
    found = 2.0 * float(scipy.special.ndtr(quantile)) - 1.0
    # The draws' own noise must not take anybody further than Bonferroni would.
    return min(found, 1.0 - (1.0 - confidence) / count)


def _gaussian(covariance: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(covariance)
    scaled = vectors * np.sqrt(np.maximum(values, 0.0))
    return np.asarray(rng.standard_normal((_DRAWS, len(covariance))) @ scaled.T)


def _less(
    first: Moments, second: Moments, ends: tuple[float, float], confidence: float
) -> tuple[float, float]:
    """Lower end of first less second, and the one-sided p-value of its not being above 0."""
    (a, va), (b, vb) = _with_row(first, ends[0]), _with_row(second, ends[1])
    value, variance = a - b, va + vb
    if variance <= 0.0:
        return value, 0.0 if value > 0.0 else 1.0
    freedom = variance**2 / (va**2 / first.rows + vb**2 / second.rows)
    t = float(scipy.special.stdtrit(freedom, 0.5 + confidence / 2.0))
    p_value = float(scipy.special.stdtr(freedom, -value / math.sqrt(variance)))
    return value - t * math.sqrt(variance), p_value


def _with_row(moments: Moments, end: float) -> tuple[float, float]:
    """Mean, and its variance, of the rows and one more of average weight."""
    more = moments.squares[0] / moments.weight
    weight = moments.weight + more
    mean = moments.mean + (end - moments.mean) * (more / weight)
    square = moments.about(mean)[2] + (more * (end - mean)) ** 2
    return mean, max(square, 0.0) / weight**2
