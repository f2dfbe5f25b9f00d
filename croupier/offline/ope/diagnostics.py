"""What has to be known of importance weights before any estimate made with them is believed.

An estimate and its interval are computed from the rows that are there. Whether those can tell what
a policy is worth at all shows elsewhere: in the mean of the weights, which is known to be 1; in how
few rows carry most of the weight; in how heavy the tail of the weights is; and in the share of the
policy's choices that the log could never have shown. :class:`WeightMonitor` gathers that, in
bounded memory and mergeable, and :func:`objections` says in sentences what speaks against a number.

Symbols are those of :mod:`croupier.offline.ope.estimators`: w is a row's importance weight and c
the number of decisions that it stands for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from croupier.offline.ope.intervals import Moments
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from croupier.offline.ope.intervals import FloatArray

__all__ = ("SupportLimits", "WeightDiagnostics", "WeightMonitor", "objections", "tail_index")

# A tail is the largest 3 sqrt(n) weights: enough for a hundred million rows.
_TAIL_KEPT = 1 << 15
_TAIL_AT_LEAST = 5
_KEEP, _WEIGHT = range(2)


class SupportLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From when on a log is held to say too little about a policy.

    Attributes
    ----------
    min_ess
        Smallest effective sample size, in rows.
    max_deficient
        Largest share of the policy's choices, in [0, 1], that the log could never have shown.
    max_tail_index
        Largest index of the weights' tail, where nothing else bounds them; any if None. From 0.7
        on, means converge so slowly that no number of rows that can be had makes an estimate or its
        interval reliable (Vehtari et al. 2024). Weights of few different sizes look like a heavy
        tail without being one, so it isn't asked unless told to.
    mean_weight_level
        How often, at most, right propensities are to be objected to since the mean weight is not 1.
    """

    min_ess: float = 50.0
    max_deficient: float = 0.01
    max_tail_index: float | None = None
    mean_weight_level: float = 0.001

    def __post_init__(self) -> None:
        if not self.min_ess >= 1.0:
            raise ValueError(f"min_ess must be at least 1, got {self.min_ess}")
        if not 0.0 <= self.max_deficient <= 1.0:
            raise ValueError(f"max_deficient must be in [0, 1], got {self.max_deficient}")
        if self.max_tail_index is not None and not self.max_tail_index > 0.0:
            raise ValueError(f"max_tail_index must be above 0, got {self.max_tail_index}")
        if not 0.0 < self.mean_weight_level < 1.0:
            raise ValueError(f"mean_weight_level must be in (0, 1), got {self.mean_weight_level}")


class WeightDiagnostics(msgspec.Struct, frozen=True, kw_only=True):
    """What the weights of a policy on a log say about the log.

    Attributes
    ----------
    n
        Rows.
    ess
        Effective sample size ``(sum c w)^2 / sum (c w)^2``, in [0, n].
    mean_weight
        ``sum c w / sum c``.
    mean_weight_error
        Its standard error, by the delta method. Rare large weights make it too small: a log that
        has not seen them yet has a mean below 1 and hardly any variance.
    max_weight
        Largest w.
    tail_index
        Shape of the weights' tail, see :func:`tail_index`; None of fewer than 25 rows, or of a tail
        of equal weights.
    deficient
        Share of the policy's choices that the log could never have shown, in [0, 1]; None if that
        was not told.
    """

    n: int
    ess: float
    mean_weight: float
    mean_weight_error: float
    max_weight: float
    tail_index: float | None
    deficient: float | None


class WeightMonitor:
    """Gathers the weights of one policy; mergeable, and bounded in memory."""

    def __init__(self) -> None:
        self._moments = Moments.of(np.zeros((0, 2)))
        self._max_weight = 0.0
        self._largest: FloatArray = np.zeros(0)
        self._told = 0
        self._deficient = 0.0

    def add(
        self,
        weight: ArrayLike,
        *,
        keep_prob: ArrayLike | None = None,
        deficient: ArrayLike | None = None,
    ) -> WeightMonitor:
        """Take in some rows; every array has shape (n,).

        Parameters
        ----------
        weight
            Importance weights, at least 0.
        keep_prob
            Probability with which each row was kept in the log, in (0, 1]; 1 if None.
        deficient
            Probability that the policy gives, on each row's request, to actions that the log's
            own policy could not have taken, in [0, 1].

        Raises
        ------
        InvalidInputError
            If an array holds something else, or has another length; it names the array.
        """
        w = _within("weight", weight, 0.0, math.inf, None)
        n = len(w)
        keep = np.ones(n) if keep_prob is None else _within("keep_prob", keep_prob, 0.0, 1.0, n)
        if np.any(keep == 0.0):
            raise InvalidInputError("keep_prob", "expected numbers in (0, 1], got 0")
        c = 1.0 / keep
        if deficient is not None:
            self._deficient += float(c @ _within("deficient", deficient, 0.0, 1.0, n))
            self._told += n
        if n:
            self._moments = self._moments.merge(Moments.of(np.column_stack([c, c * w])))
            self._max_weight = max(self._max_weight, float(w.max()))
            self._largest = _largest(self._largest, c * w)
        return self

    def merge(self, other: WeightMonitor) -> WeightMonitor:
        """Take in all that another one has."""
        self._moments = self._moments.merge(other._moments)
        self._max_weight = max(self._max_weight, other._max_weight)
        self._largest = _largest(self._largest, other._largest)
        self._told += other._told
        self._deficient += other._deficient
        return self

    def result(self) -> WeightDiagnostics:
        """What the rows so far say.

        Raises
        ------
        NotEnoughDataError
            If there are fewer than 2 rows.
        """
        n, mean = self._moments.n, self._moments.mean
        if n < 2:
            raise NotEnoughDataError(f"diagnostics need at least 2 rows, got {n}")
        ratio = float(mean[_WEIGHT] / mean[_KEEP])
        squares = float(self._moments.scatter[_WEIGHT, _WEIGHT] + n * mean[_WEIGHT] ** 2)
        gradient = np.array([-ratio, 1.0]) / mean[_KEEP]
        return WeightDiagnostics(
            n=n,
            ess=(n * float(mean[_WEIGHT])) ** 2 / squares if squares > 0.0 else 0.0,
            mean_weight=ratio,
            mean_weight_error=self._moments.standard_error(gradient),
            max_weight=self._max_weight,
            tail_index=_tail_of(self._largest, n),
            deficient=self._deficient / (n * float(mean[_KEEP])) if self._told == n else None,
        )


def objections(
    name: str, found: WeightDiagnostics, limits: SupportLimits, *, largest: float = math.inf
) -> list[str]:
    """What speaks against an estimate of a policy's value, one sentence each; none is fine.

    A mean weight is objected to beyond what chance explains by the empirical Bernstein bound
    (Audibert, Munos & Szepesvari, "Exploration-exploitation tradeoff using variance estimates in
    multi-armed bandits", 2009, theorem 1): ``s sqrt(2 L) + 3 R L / n``, where s is the standard
    error, R the largest weight and ``L = ln(3 / level)``. It holds for weights of any distribution.

    Parameters
    ----------
    name
        Of the policy.
    found, limits
        What was seen, and what may be.
    largest
        The largest weight that a row of such a log could have, times what it stands for; the mean
        weight is not judged if there is no bound, and the tail only then.
    """
    against = []
    if found.deficient is not None and found.deficient > limits.max_deficient:
        against.append(
            f"{100 * found.deficient:.2g} % of the choices of {name} could never have been logged, "
            f"more than {100 * limits.max_deficient:.2g} %: the log doesn't say what they are worth"
        )
    if found.ess < limits.min_ess:
        against.append(
            f"effective sample size {found.ess:.1f} is below {limits.min_ess:g}: "
            f"the log says too little about {name}"
        )
    log = math.log(3.0 / limits.mean_weight_level)
    chance = found.mean_weight_error * math.sqrt(2.0 * log) + 3.0 * largest * log / found.n
    if abs(found.mean_weight - 1.0) > chance:
        against.append(
            f"the mean weight of {name} is {found.mean_weight:.3f}, further from 1 than chance can "
            f"explain: propensities are wrong, or the log lacks actions"
        )
    heaviest = math.inf if limits.max_tail_index is None else limits.max_tail_index
    if largest == math.inf and (found.tail_index or 0.0) > heaviest:
        against.append(
            f"the weights of {name} have a tail of index {found.tail_index:.2f}, above "
            f"{heaviest:g}: the rows that matter most have not been seen yet"
        )
    return against


def tail_index(exceedances: ArrayLike) -> float:
    """Shape of the generalised Pareto distribution that exceedances over a threshold have.

    Moments of order ``1 / k`` and above don't exist; k = 1/2 is the limit of a finite variance. By
    the quasi-Bayesian estimate of Zhang & Stephens ("A New and Efficient Estimation Method for the
    Generalized Pareto Distribution", Technometrics, 2009), drawn towards 1/2 as by ten observations
    more (Vehtari, Simpson, Gelman, Yao & Gabry, "Pareto Smoothed Importance Sampling", JMLR, 2024,
    appendix G): ``k = mean log(1 - b x)``, with b averaged over its profile likelihood.

    Parameters
    ----------
    exceedances
        By how much values are above the threshold; at least 5, finite, at least 0, and not all 0.

    Returns
    -------
    float
        k; negative of a tail that ends.

    Raises
    ------
    InvalidInputError
        If they are something else.
    """
    x = np.sort(_within("exceedances", exceedances, 0.0, math.inf, None))
    n = len(x)
    if n < _TAIL_AT_LEAST or x[-1] <= 0.0:
        raise InvalidInputError(
            "exceedances", f"expected at least {_TAIL_AT_LEAST}, and one above 0"
        )
    # Scale-free from here on; the quartile of values that are mostly 0 is taken among the others.
    x = x / x[-1]
    quartile = x[max(int(n / 4 + 0.5) - 1, int(np.count_nonzero(x == 0.0)))]
    grid = np.arange(1, 31 + math.isqrt(n))
    b = 1.0 + (1.0 - np.sqrt(len(grid) / (grid - 0.5))) / (3.0 * quartile)
    b = b[b != 0.0]
    k = np.log1p(-b[:, None] * x[None, :]).mean(axis=1)
    likelihood = n * (np.log(-b / k) - k - 1.0)
    share = np.exp(likelihood - likelihood.max())
    at = float(share @ b / share.sum())
    shape = float(np.log1p(-at * x).mean())
    return (n * shape + 10 * 0.5) / (n + 10)


def _tail_of(largest: FloatArray, n: int) -> float | None:
    """Index of the largest weights, sorted, of n rows."""
    size = min(n // 5, math.ceil(3 * math.sqrt(n)), len(largest) - 1)
    if size < _TAIL_AT_LEAST:
        return None
    threshold, tail = largest[-size - 1], largest[-size:]
    exceedances = tail - threshold
    # But for rounding, weights that are all the same have no tail.
    return tail_index(exceedances) if exceedances[-1] > 1e-9 * tail[-1] else None


def _largest(first: FloatArray, second: FloatArray) -> FloatArray:
    both = np.concatenate([first, second])
    kept = _TAIL_KEPT + 1
    return np.sort(both if len(both) <= kept else np.partition(both, -kept)[-kept:])


def _within(name: str, values: ArrayLike, low: float, high: float, n: int | None) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or (n is not None and len(array) != n):
        expected = "one dimension" if n is None else f"{n} rows"
        raise InvalidInputError(name, f"expected {expected}, got shape {array.shape}")
    if not np.all(np.isfinite(array) & (array >= low) & (array <= high)):
        expected = "at least 0" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise InvalidInputError(name, f"expected finite numbers {expected}")
    return array
