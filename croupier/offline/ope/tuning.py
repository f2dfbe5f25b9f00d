"""Choosing an estimator's parameter from the data, in one pass.

A clipping or switching threshold trades bias for variance. The variance can be estimated, the bias
can't, but it shrinks as the parameter grows; SLOPE uses no more than that.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Self

import msgspec

from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from croupier.offline.ope.accumulators import Estimate
    from croupier.offline.ope.batches import LoggedBatch
    from croupier.offline.ope.shrinkage import Reweighed

__all__ = ("Candidate", "Slope", "candidates")

# The share of a candidate's half width that two intervals may be apart, sqrt(6) - 1 in the source.
_APART = math.sqrt(6.0) - 1.0


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter that was tried.

    Attributes
    ----------
    estimator
        Its name, with the parameter.
    parameter
        Of the weights.
    value
        What it estimates.
    half_width
        Of its normal interval, which leaves the bias out.
    chosen
        Whether it is the one.
    """

    estimator: str
    parameter: float
    value: float
    half_width: float
    chosen: bool


class Slope:
    """SLOPE: the parameter of least variance whose estimate the less biased ones don't contradict.

    Candidates are put in the order of falling variance, which is that of growing bias. Candidate i
    is admissible if for all j before it::

        |v_i - v_j| <= h_i + (sqrt(6) - 1) h_j

    with half widths h of the normal interval; the last of the admissible ones at the beginning of
    the order is chosen. Up to constants it is as good as if the bias had been known.

    Every candidate is an accumulator of moments, and a batch is added to all: one pass, no row is
    kept, and parts can be merged. `result` has the chosen one's value and, by default, the
    empirical-likelihood interval for the policy's value, which doesn't know of the parameter and so
    is not made narrower by choosing.

    Source: Su, Srinath & Krishnamurthy, "Adaptive Estimator Selection for Off-Policy Evaluation",
    ICML 2020; the constant as in Tucker & Lee, "Improved Estimator Selection for
    Off-Policy Evaluation", 2021 (SLOPE++), which drops the demand for monotone widths.

    Parameters
    ----------
    estimators
        At least two of one class, of which only the parameters are used; see :func:`candidates`.

    Raises
    ------
    InvalidInputError
        If the estimators don't go together.
    """

    def __init__(self, estimators: Sequence[Reweighed]) -> None:
        if len(estimators) < 2:
            raise InvalidInputError("estimators", f"expected at least 2, got {len(estimators)}")
        first = estimators[0]
        if any(
            type(each) is not type(first) or each.parameters()[1:] != first.parameters()[1:]
            for each in estimators
        ):
            raise InvalidInputError("estimators", "expected one class, and equal ranges")
        self.estimators = tuple(each.fresh() for each in estimators)

    def add(self, batch: LoggedBatch) -> Self:
        """Count the rows of `batch`.

        Raises
        ------
        InvalidInputError
            As the estimators do. Nothing is counted.
        """
        for each in self.estimators:
            each.add(batch)
        return self

    def merge(self, other: Self) -> Self:
        """Count the rows that `other` counted; `other` stays as it is.

        Raises
        ------
        InvalidInputError
            If `other` has other candidates.
        """
        if len(other.estimators) != len(self.estimators):
            raise InvalidInputError("other", "expected the same candidates")
        for mine, theirs in zip(self.estimators, other.estimators, strict=True):
            mine.merge(theirs)
        return self

    def candidates(self, confidence: float = 0.95) -> list[Candidate]:
        """All candidates as they were judged, least biased first.

        Raises
        ------
        InvalidInputError
            If `confidence` is not in (0, 1).
        NotEnoughDataError
            If fewer than 2 rows were counted.
        """
        judged = []
        for each in self.estimators:
            tally = each.tally_
            if tally is None:
                raise NotEnoughDataError("an estimate with an interval needs at least 2 rows")
            value, _ = each.point(tally.moments.mean)
            lower, upper = each.own_interval(tally, confidence)
            judged.append((each, value, 0.5 * (upper - lower)))
        judged.sort(key=lambda each: -each[2])
        chosen = 0
        for i, (_, value, half) in enumerate(judged):
            if any(abs(value - other) > half + _APART * width for _, other, width in judged[:i]):
                break
            chosen = i
        return [
            Candidate(
                estimator=each.name,
                parameter=each.parameter,
                value=value,
                half_width=half,
                chosen=i == chosen,
            )
            for i, (each, value, half) in enumerate(judged)
        ]

    def result(self, confidence: float = 0.95) -> Estimate:
        """Estimate of the chosen candidate.

        Raises
        ------
        InvalidInputError, NotEnoughDataError
            As the estimators do.
        """
        names = {each.estimator for each in self.candidates(confidence) if each.chosen}
        return next(each for each in self.estimators if each.name in names).result(confidence)


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
