"""Choosing an estimator and its parameter from the data, in one pass.

A clipping or switching threshold trades bias for variance. The variance can be estimated, the bias
can't, but it shrinks as the parameter grows; SLOPE uses no more than that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import msgspec
import numpy as np

from croupier.offline.ope.adjusted import AdjustedDR
from croupier.offline.ope.intervals import FloatArray, Moments
from croupier.offline.ope.shrinkage import DRos, Reweighed, SubgaussianIPS
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from croupier.offline.ope.accumulators import Estimate
    from croupier.offline.ope.batches import LoggedBatch
    from croupier.offline.ope.estimators import Estimator

__all__ = ("Candidate", "Slope", "candidates", "consistent", "tuned_dr")

# The bias that goes unnoticed, in half widths of the wider candidate: sqrt(6) - 1 in the source, of
# which 1 is that candidate's own noise.
_TOLERATED = math.sqrt(6.0) - 2.0

# Of the columns of a reweighed estimator, those that its value is made of: keep weight, own payoff.
_REWEIGHED = [0, 3]


@dataclass(frozen=True, eq=False)
class _Judged:
    """A candidate with its value, the value's gradient, and a half width."""

    estimator: Estimator
    value: float
    gradient: FloatArray
    half_width: float


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """An estimator that was tried.

    Attributes
    ----------
    estimator
        Its name, with the parameter.
    parameter
        Of the weights; None if it has none.
    value
        What it estimates.
    half_width
        As many standard errors as were asked for; leaves the bias out.
    chosen
        Whether it is the one.
    """

    estimator: str
    parameter: float | None
    value: float
    half_width: float
    chosen: bool


class Slope:
    """SLOPE: the estimator of least variance that the less biased ones don't contradict.

    Consistent candidates come first, and of these only the one of least variance counts; biased
    ones that vary less follow in the order of falling variance, which within a class is that of
    growing bias. Candidate i is admissible if for all admissible j before it::

        |v_i - v_j| <= s_ij + (sqrt(6) - 2) h_j

    with half widths h_j of `errors` standard errors of v_j, and s_ij as many of the difference
    v_i - v_j. The last admissible candidate is chosen; one that is not rules out the rest of its
    class. Up to constants the choice is as good as if the biases had been known.

    The source has the sum ``h_i + h_j`` for s_ij, which allows for the noise of two estimates of
    different logs. These are of the same rows, and neighbours mostly agree: what they share
    cancels, so a bias is noticed that is small against either error. ``paired=False`` is the
    source's rule, ``|v_i - v_j| <= h_i + (sqrt(6) - 1) h_j``.

    Every candidate is an accumulator of moments, beside one of what all of them sum, and a batch is
    added to all: one pass, no row is kept, and parts can be merged. `result` has the chosen one's
    value and, by default, the empirical-likelihood interval for the policy's value, which doesn't
    know of the parameter and so is not made narrower by choosing.

    Source: Su, Srinath & Krishnamurthy, "Adaptive Estimator Selection for Off-Policy Evaluation",
    ICML 2020; the constant as in Tucker & Lee, "Improved Estimator Selection for
    Off-Policy Evaluation", 2021 (SLOPE++), which drops the demand for monotone widths. Paired
    widths, consistent candidates first, and several classes at once are own work.

    Parameters
    ----------
    estimators
        At least two with equal intervals and ranges, of which only the parameters are used; see
        :func:`candidates`, and :func:`tuned_dr` for the default ones.
    errors
        How many standard errors wide a half width is, positive. The smaller it is, the oftener
        luck is taken for bias. The source's bounds, which hold for every number of rows, are far
        wider.
    paired
        Whether the noise of a difference is what two estimates of the same rows differ by.

    Raises
    ------
    InvalidInputError
        If the estimators don't go together.
    """

    def __init__(
        self, estimators: Sequence[Estimator], *, errors: float = 1.0, paired: bool = True
    ) -> None:
        if len(estimators) < 2:
            raise InvalidInputError("estimators", f"expected at least 2, got {len(estimators)}")
        if not 0.0 < errors < math.inf:
            raise InvalidInputError("errors", f"expected a positive number, got {errors}")
        if any(_common(each) != _common(estimators[0]) for each in estimators):
            raise InvalidInputError("estimators", "expected equal intervals and ranges")
        names = [each.name for each in estimators]
        if len(set(names)) < len(names):
            raise InvalidInputError("estimators", f"expected different ones, got {names}")
        self.estimators = tuple(_fresh(each) for each in estimators)
        self.errors = errors
        self.paired = paired
        self.moments_: Moments | None = None

    def add(self, batch: LoggedBatch) -> Self:
        """Count the rows of `batch`.

        Raises
        ------
        InvalidInputError
            As the estimators do. Nothing is counted.
        """
        columns = np.hstack([each.columns(batch)[:, _summed(each)] for each in self.estimators])
        for each in self.estimators:
            each.add(batch)
        moments = Moments.of(columns)
        self.moments_ = moments if self.moments_ is None else self.moments_.merge(moments)
        return self

    def merge(self, other: Self) -> Self:
        """Count the rows that `other` counted; `other` stays as it is.

        Raises
        ------
        InvalidInputError
            If `other` has other candidates.
        """
        mine = (len(self.estimators), self.errors, self.paired)
        if mine != (len(other.estimators), other.errors, other.paired):
            raise InvalidInputError("other", "expected the same candidates")
        for own, theirs in zip(self.estimators, other.estimators, strict=True):
            own.merge(theirs)
        if other.moments_ is not None:
            moments = other.moments_
            self.moments_ = moments if self.moments_ is None else self.moments_.merge(moments)
        return self

    def candidates(self) -> list[Candidate]:
        """All candidates as they were judged, least biased first.

        Raises
        ------
        NotEnoughDataError
            If fewer than 2 rows were counted, or a candidate has no value.
        """
        moments = self.moments_
        if moments is None or moments.n < 2:
            raise NotEnoughDataError("an estimate with an interval needs at least 2 rows")
        judged = [
            _Judged(each, value, gradient, self.errors * moments.standard_error(gradient))
            for each, value, gradient in self._points(moments)
        ]
        judged.sort(key=lambda each: (not consistent(each.estimator), -each.half_width))
        chosen = self._choose(judged, moments)
        return [
            Candidate(
                estimator=each.estimator.name,
                parameter=_parameter(each.estimator),
                value=each.value,
                half_width=each.half_width,
                chosen=each is chosen,
            )
            for each in judged
        ]

    def _points(self, moments: Moments) -> Iterator[tuple[Estimator, float, FloatArray]]:
        """Every candidate with its value and the value's gradient at all columns."""
        start = 0
        for each in self.estimators:
            assert each.tally_ is not None
            value, gradient = each.point(each.tally_.moments.mean)
            summed = gradient[_summed(each)]
            everywhere = np.zeros(len(moments.mean))
            everywhere[start : start + len(summed)] = summed
            start += len(summed)
            yield each, value, everywhere

    def _choose(self, judged: Sequence[_Judged], moments: Moments) -> _Judged:
        """The last admissible one of those in order."""
        known = [each for each in judged if consistent(each.estimator)]
        admissible = known[-1:]
        ruled_out: set[type[Estimator]] = set()
        for each in judged[len(known) :]:
            kind = type(each.estimator)
            if kind in ruled_out or (known and each.half_width > known[-1].half_width):
                continue
            if all(self._agree(each, wider, moments) for wider in admissible):
                admissible.append(each)
            else:
                ruled_out.add(kind)
        return admissible[-1]

    def _agree(self, each: _Judged, wider: _Judged, moments: Moments) -> bool:
        gap = abs(each.value - wider.value)
        if not self.paired:
            return gap <= each.half_width + (1.0 + _TOLERATED) * wider.half_width
        noise = self.errors * moments.standard_error(each.gradient - wider.gradient)
        return gap <= noise + _TOLERATED * wider.half_width

    def result(self, confidence: float = 0.95) -> Estimate:
        """Estimate of the chosen candidate.

        Raises
        ------
        InvalidInputError, NotEnoughDataError
            As the estimators do.
        """
        names = {each.estimator for each in self.candidates() if each.chosen}
        return next(each for each in self.estimators if each.name in names).result(confidence)


def tuned_dr(
    largest: float,
    *,
    reward_range: tuple[float, float] = (0.0, 1.0),
    weight_range: tuple[float, float] = (0.0, math.inf),
    number: int = 12,
) -> Slope:
    """The default estimator: doubly robust, tuned by SLOPE.

    Candidates are the adjusted doubly robust estimator, which is consistent and to first order as
    good as IPS, SNIPS, DR and SNDR, and those of optimistic shrinkage down to the direct method,
    for where weights are too large for it.

    Parameters
    ----------
    largest, number
        As for :func:`candidates`.
    reward_range, weight_range
        As for :class:`~croupier.offline.ope.estimators.Estimator`.

    Raises
    ------
    InvalidInputError
        If a parameter is out of its range.
    """
    shrunk = DRos(1.0, reward_range=reward_range, weight_range=weight_range)
    whole = AdjustedDR(reward_range=reward_range, weight_range=weight_range)
    return Slope((whole, *candidates(shrunk, largest, number=number)))


def candidates(estimator: Reweighed, largest: float, *, number: int = 12) -> tuple[Reweighed, ...]:
    """Estimators with parameters on a grid, for :class:`Slope`.

    Thresholds of clipping and switching go from 1 to the largest weight, on a log scale, and
    parameters of optimistic shrinkage to its square times 100, where nothing is left of the
    shrinkage, each with the direct method or nothing, 0, before; those of subgaussian shrinkage
    go from 1 to 0.

    Parameters
    ----------
    estimator
        Whose other parameters they take.
    largest
        Largest weight, finite and above 1; a rough one will do.
    number
        How many, at least 3.

    Raises
    ------
    InvalidInputError
        If `largest` or `number` is out of its range.
    """
    if not 1.0 < largest < math.inf:
        raise InvalidInputError("largest", f"expected a finite number above 1, got {largest}")
    if number < 3:
        raise InvalidInputError("number", f"expected at least 3, got {number}")
    return tuple(estimator.fresh(parameter) for parameter in estimator.grid(largest, number))


def consistent(estimator: Estimator) -> bool:
    """Whether an estimator tends to the policy's value, whatever the reward model."""
    if not isinstance(estimator, Reweighed):
        return True
    whole = 0.0 if isinstance(estimator, SubgaussianIPS) else math.inf
    return estimator.parameter == whole


def _parameter(estimator: Estimator) -> float | None:
    return estimator.parameter if isinstance(estimator, Reweighed) else None


def _common(estimator: Estimator) -> tuple[object, ...]:
    return (estimator.interval, estimator.reward_range, estimator.weight_range)


def _fresh(estimator: Estimator) -> Estimator:
    """One like it that has counted nothing."""
    if isinstance(estimator, Reweighed):
        return estimator.fresh()
    return type(estimator)(
        interval=estimator.interval,
        reward_range=estimator.reward_range,
        weight_range=estimator.weight_range,
    )


def _summed(estimator: Estimator) -> slice | list[int]:
    """Which of an estimator's columns its value is made of."""
    return _REWEIGHED if isinstance(estimator, Reweighed) else slice(None)
