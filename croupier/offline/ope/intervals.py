"""Confidence intervals from sufficient statistics.

Every estimator of this package is a smooth function of the means of a few columns (the *linear
statistics* of a row: its keep weight, its importance weight, its weighted reward and so on), so
one mergeable :class:`Moments` is all that any interval here needs. No row is stored.

Normal and delta-method intervals are for plenty of data. The empirical-likelihood interval is the
safe one: at click-like rates the log has often not seen the rows that matter most (a large
importance weight *and* a click), the sample variance doesn't know about them, and a normal
interval covers 55-85% instead of 95%.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import scipy
from numpy.typing import NDArray

from croupier.policy.errors import InvalidInputError, NotEnoughDataError

__all__ = (
    "FloatArray",
    "IntervalMethod",
    "Moments",
    "Unseen",
    "empirical_likelihood_interval",
    "normal_interval",
    "require_confidence",
)

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]

IntervalMethod: TypeAlias = Literal[
    "normal",
    "delta",
    "outer",
    "empirical-likelihood",
    "empirical-bernstein",
    "clopper-pearson",
    "bootstrap",
    "confidence-sequence",
]
"""How an interval was computed: ``normal`` for a mean, ``delta`` for a ratio of means."""

# A control column whose variance is below this share of the keep weight's mean square is constant
# but for rounding; regressing on it would divide rounding errors by rounding errors.
_CONSTANT = 1e-14


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and scatter of k columns; merges without loss.

    ``mean = sum_i z_i / n``, ``scatter = sum_i (z_i - mean)(z_i - mean)'``, merged by the pairwise
    update of Chan, Golub & LeVeque ("Algorithms for Computing the Sample Variance", The American
    Statistician, 1983), which keeps the precision that raw sums of squares lose where a mean is
    large against its standard deviation.

    Attributes
    ----------
    n
        Number of rows.
    mean
        Shape (k,).
    scatter
        Shape (k, k), symmetric, positive semi-definite.
    """

    n: int
    mean: FloatArray
    scatter: FloatArray

    @classmethod
    def of(cls, columns: FloatArray) -> Moments:
        """Moments of the rows of `columns`, shape (n, k); n may be 0."""
        n, k = columns.shape
        if n == 0:
            return cls(0, np.zeros(k), np.zeros((k, k)))
        mean = columns.mean(axis=0)
        centred = columns - mean
        return cls(n, mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """Moments of the rows of both."""
        n = self.n + other.n
        if n == 0:
            return self
        gap = other.mean - self.mean
        mean = (self.n * self.mean + other.n * other.mean) / n
        between = (self.n * other.n / n) * np.outer(gap, gap)
        return Moments(n, mean, self.scatter + other.scatter + between)

    def transform(self, matrix: FloatArray) -> Moments:
        """Moments of ``matrix @ z``, with `matrix` of shape (m, k)."""
        return Moments(self.n, matrix @ self.mean, matrix @ self.scatter @ matrix.T)

    def standard_error(self, gradient: FloatArray) -> float:
        """Standard error of a smooth function of the mean, by the delta method.

        ``sqrt(g' S g / n)`` with the sample covariance ``S = scatter / (n - 1)``; exact for a
        linear function. Under subsampling and for a ratio the denominator is a column like any
        other, so that its randomness is in S.

        Parameters
        ----------
        gradient
            Of the function at `mean`, shape (k,).

        Raises
        ------
        NotEnoughDataError
            If there are fewer than 2 rows.
        """
        if self.n < 2:
            raise NotEnoughDataError(f"an interval needs at least 2 rows, got {self.n}")
        variance = float(gradient @ self.scatter @ gradient) / (self.n - 1)
        return float(np.sqrt(max(variance, 0.0) / self.n))


def normal_interval(value: float, standard_error: float, confidence: float) -> tuple[float, float]:
    """Two-sided interval ``value -/+ z_{(1+confidence)/2} * standard_error``.

    Raises
    ------
    InvalidInputError
        If `confidence` is not in (0, 1).
    """
    require_confidence(confidence)
    half = float(scipy.stats.norm.ppf(0.5 + confidence / 2.0)) * standard_error
    return value - half, value + half


@dataclass(frozen=True)
class Unseen:
    """What a row that the log happens not to hold could have looked like.

    A row is worth ``offset + sum_j signs[j] * weight_j * residual``, times its keep weight.

    Attributes
    ----------
    keep
        Keep weight (one over the keep probability) of such a row, at least 1.
    weights
        Per evaluated policy, the importance weights to try: ends of the known range, which may
        be infinite, and any points between them.
    signs
        Per evaluated policy, +1 or -1: (1,) for a value, (-1, 1) for a difference.
    residual
        Smallest and largest reward, less the reward model's prediction if there is one.
    offset
        Smallest and largest part that carries no weight.
    """

    keep: float
    weights: tuple[tuple[float, ...], ...]
    signs: tuple[int, ...]
    residual: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)


def empirical_likelihood_interval(
    moments: Moments, unseen: Unseen, confidence: float, value_range: tuple[float, float]
) -> tuple[float, float]:
    r"""Cressie-Read (lambda = -2, "Euclidean") empirical-likelihood interval of a policy's value.

    Row i has keep weight c, weight controls ``g_j = c (w_j - 1)`` and payoff u (for IPS
    ``u = c w r``). Correctly logged propensities give ``E[g_j] = 0``, and the value v solves
    ``E[u - v c] = 0``. Let the sample be the n rows and one row more that was not seen, so
    M = n + 1, and choose probabilities p_i that keep both equations at the least Cressie-Read
    distance from uniform. Allowing negative p_i, Lagrange's conditions make
    ``M p_i - 1`` linear in the moment functions, so that for h_i(v) = (g_i, u_i - v c_i)::

        min_p sum_i (M p_i - 1)^2 = M * mean(h)' cov(h)^-1 mean(h)

    Splitting off the part that doesn't depend on v (the controls') leaves the profile

        M (A - v B)^2 / (S_uu - 2 v S_uc + v^2 S_cc),

    where A, B are the augmented means of u, c after regression on g, and S the residual
    covariance of (u, c) given g. It is chi-square(1) for the true v; as in the paper its quantile
    is replaced by that of F(1, n). The set of v below the quantile F is the solution of a quadratic
    inequality, as in Fieller's theorem. With c = 1 it is ``A -/+ sqrt(F S_uu / M)``, A being the
    mean of w r, adjusted for the known mean of w.

    The unseen row is what makes the interval cover where the rows that matter are rare. It is
    tried at every corner of `unseen`, with the residual that favours the bound in question,
    and the outermost bound is kept: with k rare rows seen the upper bound stands near
    k + 1 + 1.96 sqrt(k + 1), next to the exact Poisson bound. Corners at infinite weight are
    limits: scaled by 1/w the control of the unseen row is 1 and those of the sample are 0.

    Source: Karampatziakis, Langford & Mineiro, "Empirical Likelihood for Contextual Bandits",
    NeurIPS 2020 (arXiv 1906.03323), the confidence interval; own derivation of the Cressie-Read
    closed form, which agrees with the authors' package vw-estimators. Beyond the source: keep
    weights; several policies at once, each with its own control; unseen rows at inner weights
    too, without which the interval loses its protection where the logged weights hardly vary
    (evaluating the logging policy at a reward rate of .002 on 500 rows, it would cover 63%).

    Parameters
    ----------
    moments
        Of the columns (c, c w_1, ..., c w_J, u); all from one stream of rows.
    unseen
        What an unseen row could be, for the same J policies.
    confidence
        Nominal coverage, in (0, 1).
    value_range
        Smallest and largest possible value; the interval is cut to it.

    Returns
    -------
    lower, upper
        ``value_range[0] <= lower <= upper <= value_range[1]``.

    Raises
    ------
    InvalidInputError
        If `confidence` is not in (0, 1).
    NotEnoughDataError
        If there are fewer than J + 2 rows.

    Notes
    -----
    Rests on correct propensities and full support: an action that the evaluated policy takes and
    the logging policy never does makes ``E[w] < 1``, and no interval can know. Tested to cover at
    95% nominal over random policies, rewards from .002 to .9 and 300 to 10,000 rows. Where keep
    probabilities vary, the unseen row is given the largest keep weight, which is safe but up to
    three times as wide as need be if, say, only rows without reward are ever dropped.
    """
    require_confidence(confidence)
    # With fewer, the regression on the controls fits every row and leaves no residual to judge by.
    least = len(unseen.signs) + 2
    if moments.n < least:
        raise NotEnoughDataError(f"the interval needs at least {least} rows, got {moments.n}")
    corners, for_lower, for_upper = _corners(unseen)
    mean, covariance = _augment(moments, unseen, corners)
    centre, slope, residual = _partial_out(mean, covariance, unseen.keep)
    quantile = float(scipy.stats.f.isf(1.0 - confidence, 1, moments.n))
    low, high = _fieller(centre, slope, residual * (quantile / (moments.n + 1)))
    lower, upper = np.clip((low[for_lower].min(), high[for_upper].max()), *value_range)
    return float(lower), float(upper)


def _corners(unseen: Unseen) -> tuple[FloatArray, BoolArray, BoolArray]:
    """All corners (w_1, ..., w_J, residual, offset), and which of them bound from below, above."""
    axes = (*unseen.weights, sorted(set(unseen.residual)), sorted(set(unseen.offset)))
    corners = np.array(list(itertools.product(*axes)), dtype=np.float64)
    j = len(unseen.signs)
    with np.errstate(invalid="ignore"):
        net_weight = (corners[:, :j] * np.array(unseen.signs)).sum(axis=1)
        favours = net_weight * (corners[:, j] - sum(unseen.residual) / 2.0)
    # Neither comparison holds for 0 and NaN (no net weight, two infinite ones): used for both.
    return corners, ~(favours > 0.0), ~(favours < 0.0)


def _augment(
    moments: Moments, unseen: Unseen, corners: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Mean and covariance of (c, g_1, ..., g_J, u) with the unseen row in, for every corner.

    Empirical likelihood doesn't change if the moment functions are replaced by an invertible
    linear image. Two such changes make infinite weights finite: g_j is divided by the corner's
    weight, and ``residual * sum_j signs[j] g_j`` is taken off u.
    """
    m, j = len(corners), len(unseen.signs)
    weight, residual, offset = corners[:, :j], corners[:, j], corners[:, j + 1]
    signs = np.array(unseen.signs, dtype=np.float64)
    scale = 1.0 / np.maximum(weight, 1.0)
    change = np.zeros((m, j + 2, j + 2))
    change[:, 0, 0] = 1.0
    for i in range(j):
        change[:, 1 + i, 1 + i] = scale[:, i]
        change[:, 1 + i, 0] = -scale[:, i]
        change[:, -1, 1 + i] = -residual * signs[i]
    change[:, -1, 0] = residual * signs.sum()
    change[:, -1, -1] = 1.0
    finite = np.where(np.isinf(weight), 1.0, weight)
    control = np.where(np.isinf(weight), 1.0, (finite - 1.0) * scale)
    row = np.column_stack((np.ones(m), control, offset + residual * signs.sum())) * unseen.keep

    n = moments.n
    mean = change @ moments.mean
    covariance = change @ (moments.scatter / (n + 1)) @ change.transpose(0, 2, 1)
    gap = row - mean
    between = (n / (n + 1) ** 2) * gap[:, :, None] * gap[:, None, :]
    return mean + gap / (n + 1), covariance + between


def _partial_out(
    mean: FloatArray, covariance: FloatArray, keep: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Means of u and c, and covariance of (u, c), after regression on the controls.

    Returns
    -------
    centre, slope
        Shape (m,).
    residual
        Shape (m, 2, 2).
    """
    ends = [-1, 0]
    controls = covariance[:, 1:-1, 1:-1]
    values, vectors = np.linalg.eigh(controls)
    floor = _CONSTANT * (mean[:, :1] ** 2 + keep**2)
    inverse = np.where(values > floor, 1.0 / np.maximum(values, floor), 0.0)
    to_ends = covariance[:, 1:-1][:, :, ends]
    rotated = vectors.transpose(0, 2, 1) @ to_ends
    coefficients = vectors @ (inverse[:, :, None] * rotated)
    adjusted = mean[:, ends] - np.einsum("mj,mje->me", mean[:, 1:-1], coefficients)
    residual = covariance[:, ends][:, :, ends] - to_ends.transpose(0, 2, 1) @ coefficients
    return adjusted[:, 0], adjusted[:, 1], residual


def _fieller(
    centre: FloatArray, slope: FloatArray, bound: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Ends of {v: (centre - v slope)^2 <= b_uu - 2 v b_uc + v^2 b_cc}; infinite if unbounded."""
    a = slope**2 - bound[:, 1, 1]
    b = centre * slope - bound[:, 0, 1]
    c = centre**2 - bound[:, 0, 0]
    root = np.sqrt(np.maximum(b * b - a * c, 0.0))
    # The denominator of the value isn't told from 0: any value is compatible with the log.
    bounded = a > 0.0
    safe = np.where(bounded, a, 1.0)
    return (
        np.where(bounded, (b - root) / safe, -np.inf),
        np.where(bounded, (b + root) / safe, np.inf),
    )


def require_confidence(confidence: float) -> None:
    """Raise InvalidInputError if `confidence` is not in (0, 1)."""
    if not 0.0 < confidence < 1.0:
        raise InvalidInputError("confidence", f"expected a number in (0, 1), got {confidence!r}")
