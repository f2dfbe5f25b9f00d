"""Thompson sampling from a Gaussian posterior, with probabilities instead of draws."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from croupier.policy.exploration.base import (
    Approximation,
    ExplorationBase,
    FloatArray,
    Round,
    require,
)

if TYPE_CHECKING:
    from croupier.policy.estimates import Estimates, Uncertainty

__all__ = ("Thompson",)

_REACH = 9.0
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
# Of the largest spread: a narrower posterior is a point to any other.
_NARROWEST = 1e-9
_TIED = 1e-12
# Where the logarithm of a probability is below this, it is 0.
_IMPOSSIBLE = -60.0
_LOOKS = 32
_AT_ONCE = 1_000_000


class Thompson(ExplorationBase, frozen=True, tag="thompson"):
    """Probability matching: ``p(a) = P(a is best)`` for rewards ``~ N(f, scale² Σ)``.

    Taken one by one (`correlated` false), the actions' posteriors are independent and
    ``p(a) = ∫ φ_a(x) Π_{b≠a} Φ_b(x) dx`` is found by quadrature to about 1e-10. With their
    covariance two actions have the closed form ``Φ((f(a) - f(b)) / sd)``, and errors that any two
    actions share to the same extent cancel, which leaves independent ones; otherwise the pmf is
    that of `samples` draws of the posterior, the same ones for every request. What is played is the
    drawn pmf, so that its propensities are exact too; :meth:`approximation` says how far it is from
    the limit.

    Attributes
    ----------
    scale
        Factor ≥ 0 on the standard errors; 0 is greedy. The noise's standard deviation is the
        Bayesian one, and 0.5 fits rewards in [0, 1].
    correlated
        Whether errors that the actions share (those of the context's weights) cancel.
    samples
        Of the posterior where it has to be sampled, 100 to 1,000,000.
    seed
        Of the samples.

    References
    ----------
    Thompson, "On the Likelihood that One Unknown Probability Exceeds Another", 1933; Agrawal and
    Goyal, "Thompson Sampling for Contextual Bandits with Linear Payoffs", 2013. Quadrature and
    sampling are ours.
    """

    scale: float = 0.5
    correlated: bool = True
    samples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("scale", self.scale, low=0.0)
        require("samples", self.samples, low=100, high=1_000_000)
        require("seed", self.seed, low=0)

    @property
    def needs(self) -> Uncertainty:
        """The standard errors, or the covariance they are part of."""
        return frozenset({"covariance" if self.correlated else "deviation"})

    @property
    def caution(self) -> str | None:
        """Without a floor: that actions of hardly any probability spoil an evaluation."""
        if self.floor > 0.0:
            return None
        return (
            "probabilities can come down to 0: policies that play such actions can't be evaluated "
            "from its log; give it a floor"
        )

    def approximation(self, pmf: FloatArray, confidence: float = 0.999) -> Approximation | None:
        """How far a pmf that was sampled can be from the posterior's; None where none is."""
        if not self.correlated or pmf.size <= 2:
            return None
        failing = 1.0 - confidence
        largest = math.sqrt(math.log(2.0 * pmf.size / failing) / (2.0 * self.samples))
        # E TV <= sqrt(K / n) / 2, and one draw more or less changes it by at most 1 / n.
        expected = 0.5 * math.sqrt(pmf.size / self.samples)
        beyond = math.sqrt(math.log(1.0 / failing) / (2.0 * self.samples))
        return Approximation(
            np.sqrt(pmf * (1.0 - pmf) / self.samples),
            largest,
            min(expected + beyond, 1.0),
            confidence,
        )

    def _explore(self, estimates: Estimates, round_: Round) -> FloatArray:  # noqa: ARG002
        mean = estimates.mean
        if mean.size == 1:
            return np.ones(1)
        if not self.correlated:
            assert estimates.deviation is not None, "needs says so"
            return _probability_of_best(mean, self.scale * estimates.deviation)
        assert estimates.covariance is not None, "needs says so"
        covariance = self.scale**2 * estimates.covariance
        if mean.size == 2:
            return _better_of_two(mean, covariance)
        remaining = _beyond_the_shared(covariance)
        if remaining is not None:
            return _probability_of_best(mean, np.sqrt(remaining))
        return _share_of_samples(mean, covariance, self.samples, self.seed)


def _probability_of_best(mean: FloatArray, deviation: FloatArray) -> FloatArray:
    """``∫ φ_a(x) Π_{b≠a} Φ_b(x) dx`` for independent N(mean, deviation²), shape (K,).

    Gauss-Legendre quadrature on panels no wider than any posterior that changes within them.
    """
    from scipy.special import log_ndtr  # noqa: PLC0415 - slow to import, and seldom needed

    actions = mean.size
    # In units of the spread, so that neither squares nor differences overflow or vanish.
    center = mean.max()
    with np.errstate(over="ignore"):
        unit = max(float(min(center - mean.min(), 1e150)), float(deviation.max())) or 1.0
        mean = np.maximum((mean - center) / unit, -1e6)
        deviation = np.maximum(deviation / unit, _NARROWEST)
    top = float((mean + _REACH * deviation).max())
    bottom = float((mean - _REACH * deviation).max())
    # The best of many is hardly ever that low.
    x = np.linspace(bottom, top, _LOOKS)
    rising = log_ndtr((x[:, None] - mean) / deviation).sum(axis=1)
    bottom = float(x[max(int(np.searchsorted(rising, _IMPOSSIBLE)) - 1, 0)])
    contending = np.flatnonzero(mean + _REACH * deviation > bottom)
    mean, deviation = mean[contending], deviation[contending]
    left, right = _panels(mean, deviation, bottom, top)
    half = 0.5 * (right - left)
    x = (0.5 * (left + right)[:, None] + half[:, None] * _NODES).ravel()
    weights = (half[:, None] * _WEIGHTS).ravel()
    shares = np.zeros(contending.size)
    step = max(1, _AT_ONCE // contending.size)
    for start in range(0, x.size, step):
        z = (x[start : start + step] - mean[:, None]) / deviation[:, None]
        log_cdf = log_ndtr(z)
        # φ_a / Φ_a times the product of all Φ_b, in logarithms since single factors underflow.
        log_pdf = -0.5 * z * z - log_cdf + log_cdf.sum(axis=0)
        shares += np.exp(log_pdf) @ weights[start : start + step]
    shares /= deviation
    pmf = np.zeros(actions)
    pmf[contending] = shares / shares.sum()
    return pmf


def _panels(
    mean: FloatArray, deviation: FloatArray, bottom: float, top: float
) -> tuple[FloatArray, FloatArray]:
    """Ends of panels over [bottom, top]: halved wherever one holds part of a narrower posterior."""
    left, right = np.array([bottom]), np.array([top])
    done: list[tuple[FloatArray, FloatArray]] = []
    while left.size:
        touched = (mean - _REACH * deviation < right[:, None]) & (
            mean + _REACH * deviation > left[:, None]
        )
        wide = (touched & (2.0 * deviation < (right - left)[:, None])).any(axis=1)
        done.append((left[~wide], right[~wide]))
        left, right = left[wide], right[wide]
        middle = 0.5 * (left + right)
        left, right = np.concatenate([left, middle]), np.concatenate([middle, right])
    return np.concatenate([ends[0] for ends in done]), np.concatenate([ends[1] for ends in done])


def _better_of_two(mean: FloatArray, covariance: FloatArray) -> FloatArray:
    gap = float(mean[0] - mean[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2.0 * covariance[0, 1])
    if variance <= 0.0:
        first = 0.5 if gap == 0.0 else float(gap > 0.0)
        return np.array([first, 1.0 - first])
    z = gap / math.sqrt(2.0 * variance)
    return 0.5 * np.array([math.erfc(-z), math.erfc(z)])


def _beyond_the_shared(covariance: FloatArray) -> FloatArray | None:
    """Variances without the part that all actions share; None if they share different parts.

    ``N(f, D + c·11ᵀ)`` is ``N(f, D)`` and one number more for all actions, which changes no order.
    """
    off = ~np.eye(len(covariance), dtype=bool)
    shared = covariance[off]
    spread = np.diag(covariance)
    tolerance = _TIED * max(float(spread.max()), 1e-300)
    if np.ptp(shared) > tolerance or (spread < shared[0] - tolerance).any():
        return None
    return np.asarray(np.maximum(spread - shared[0], 0.0))


def _share_of_samples(
    mean: FloatArray, covariance: FloatArray, samples: int, seed: int
) -> FloatArray:
    """How often every action is the best of a sample of the posterior, shape (K,).

    The samples must not depend on the order of the actions: they are handed out by rank of the
    estimate, and actions that can't be told apart share what they get.
    """
    spread = np.diag(covariance)
    shared = covariance.sum(axis=1)
    order = np.lexsort((shared, spread, mean))[::-1]
    ranked, root = mean[order], _root(covariance[order][:, order])
    with np.errstate(over="ignore"):
        drawn = ranked + _standard_normal(samples, mean.size, seed) @ root.T
    best = drawn == drawn.max(axis=1, keepdims=True)
    votes = (best / np.count_nonzero(best, axis=1)[:, None]).mean(axis=0)
    pmf = np.empty(mean.size)
    pmf[order] = _shared_among_alike(votes, ranked, spread[order], shared[order])
    return pmf


def _root(covariance: FloatArray) -> FloatArray:
    """A matrix R with R Rᵀ = covariance, which may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


def _shared_among_alike(votes: FloatArray, *keys: FloatArray) -> FloatArray:
    """Even out the votes of neighbours whose keys are all the same."""
    differs = np.zeros(votes.size - 1, dtype=bool)
    for key in keys:
        scale = max(float(np.abs(key).max()), 1e-300)
        differs |= np.abs(np.diff(key)) > _TIED * scale
    group = np.concatenate([[0], np.cumsum(differs)])
    return np.asarray((np.bincount(group, votes) / np.bincount(group))[group])


@functools.lru_cache(maxsize=8)
def _standard_normal(samples: int, actions: int, seed: int) -> FloatArray:
    """The samples behind every request of so many actions; kept, as the hot path asks often."""
    normal = np.random.default_rng(seed).standard_normal((samples, actions))
    normal.flags.writeable = False
    return normal
