"""What all estimators share: sums that can be added to, merged and read."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, Protocol, Self, TypeAlias, TypeVar

import msgspec
import numpy as np

from croupier.offline.ope.batches import LoggedBatch, PairedBatch
from croupier.offline.ope.bounded import clopper_pearson_interval, empirical_bernstein_interval
from croupier.offline.ope.intervals import (
    FloatArray,
    IntervalMethod,
    Moments,
    Unseen,
    empirical_likelihood_interval,
    normal_interval,
)
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ("LARGE_SAMPLE", "Accumulator", "BatchT", "Doubt", "Estimate", "Linear", "Tally")

Doubt: TypeAlias = Literal["few-rewards", "own-expectation"]
"""Why an interval may cover less often than it says.

``few-rewards``: a large-sample interval (normal, delta, outer, bootstrap) on fewer than 30
effective rewards, nonzero_rewards * ess / n. ``own-expectation``: the interval is one for what the
estimator tends to, and its bias comes on top.
"""

# Below so many effective rewards, normal intervals covered 82-85% instead of 95%, and 95% at 29.
_FEW_REWARDS = 30.0

_KEEP = 0

LARGE_SAMPLE: frozenset[IntervalMethod] = frozenset({"normal", "delta", "outer", "bootstrap"})
"""Intervals that rest on the central limit theorem."""

_OWN: frozenset[IntervalMethod] = frozenset({"normal", "delta", "bootstrap"})


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """An estimated value (or difference of two values) with its interval and its support.

    Attributes
    ----------
    estimator
        Which estimator it is, ``snips`` or ``snips-difference`` for example.
    value
        The estimate, in the reward's unit per decision.
    lower, upper
        The interval; always ``lower <= value <= upper``.
    confidence
        Its nominal coverage, in (0, 1).
    interval
        How it was computed.
    n
        Number of rows.
    ess
        Effective sample size ``(sum c w)^2 / sum (c w)^2``, in [0, n]: as many rows of weight 1
        would tell as much about the weights.
    mean_weight
        ``sum c w / sum c``; its expectation is 1. Far below 1, the log lacks actions that the
        policy takes; far off either way, the propensities are wrong.
    max_weight
        Largest w of a row.
    nonzero_rewards
        Number of rows with both a reward and a weight other than 0: what an estimate of a rare
        reward really rests on.
    doubts
        Why the interval may cover less often than it says; none of the default one.

    Notes
    -----
    Of a difference, `ess`, `mean_weight` and `max_weight` are those of the worse policy: smallest,
    farthest from 1, largest.
    """

    estimator: str
    value: float
    lower: float
    upper: float
    confidence: float
    interval: IntervalMethod
    n: int
    ess: float
    mean_weight: float
    max_weight: float
    nonzero_rewards: int
    doubts: tuple[Doubt, ...] = ()


class Batch(Protocol):
    """Rows that can be counted some at a time."""

    def __len__(self) -> int: ...

    def parts(self) -> Iterator[Self]:
        """The rows, some at a time."""
        ...


AnyBatchT = TypeVar("AnyBatchT", bound=Batch)
BatchT = TypeVar("BatchT", LoggedBatch, PairedBatch)


@dataclass(frozen=True, eq=False)
class Tally:
    """All that is remembered of some rows: moments of columns, extremes of others, a count."""

    moments: Moments
    lowest: FloatArray
    highest: FloatArray
    nonzero_rewards: int

    @classmethod
    def of(cls, columns: FloatArray, tracked: Sequence[FloatArray], nonzero: FloatArray) -> Tally:
        """Count rows: `columns` (n, k) for moments, `tracked` j vectors (n,) for extremes."""
        return cls(
            Moments.of(columns),
            np.array([each.min(initial=math.inf) for each in tracked]),
            np.array([each.max(initial=-math.inf) for each in tracked]),
            int(np.count_nonzero(nonzero)),
        )

    def merge(self, other: Tally) -> Tally:
        """Tally of the rows of both."""
        return Tally(
            self.moments.merge(other.moments),
            np.minimum(self.lowest, other.lowest),
            np.maximum(self.highest, other.highest),
            self.nonzero_rewards + other.nonzero_rewards,
        )


@dataclass(frozen=True, eq=False)
class Linear:
    """What the intervals for a policy's value itself are made of.

    Attributes
    ----------
    moments
        Of (c, c w_1, ..., c w_J, c payoff), of which ``E[payoff]`` is the value and ``E[w_j]`` 1.
    unseen
        What a row can be.
    value_range
        Smallest and largest possible value.
    """

    moments: Moments
    unseen: Unseen
    value_range: tuple[float, float]

    def interval(self, method: IntervalMethod, confidence: float) -> tuple[float, float]:
        """The interval of that name."""
        if method == "empirical-likelihood":
            return empirical_likelihood_interval(
                self.moments, self.unseen, confidence, self.value_range
            )
        if method == "empirical-bernstein":
            return empirical_bernstein_interval(
                self.moments, self.unseen, confidence, self.value_range
            )
        return clopper_pearson_interval(self.moments, self.unseen, confidence, self.value_range)


class Accumulator(ABC, Generic[AnyBatchT]):
    """What estimators and differences share: sums that can be added to, merged and read.

    A subclass says which columns a batch gives and what smooth function of their means its value
    is; the first column is the keep weight. The state, `tally_`, is all that pickling has to carry
    besides the constructor's parameters. Scikit-learn's conventions, as far as they go:
    parameters are keyword arguments that are stored as they are, what was learned ends in an
    underscore, `add` is ``partial_fit`` and returns self; there is no ``fit``, since an estimate
    of a log in parts is one of the whole log.
    """

    interval: IntervalMethod
    reward_range: tuple[float, float]

    def __init__(self) -> None:
        self.tally_: Tally | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """Goes into :class:`Estimate`."""

    @abstractmethod
    def parameters(self) -> tuple[object, ...]:
        """The constructor's parameters; only accumulators with equal ones can be merged."""

    @abstractmethod
    def columns(self, batch: AnyBatchT) -> FloatArray:
        """Per row, what the value is a function of the means of, shape (n, k); keep weight first.

        Raises
        ------
        InvalidInputError
            If the batch lacks something.
        """

    @abstractmethod
    def point(self, mean: FloatArray) -> tuple[float, FloatArray]:
        """The value as a function of the columns' means, and its gradient there."""

    def large_sample(self, tally: Tally, confidence: float) -> tuple[float, float]:
        """The normal or delta interval."""
        value, gradient = self.point(tally.moments.mean)
        return normal_interval(value, tally.moments.standard_error(gradient), confidence)

    @abstractmethod
    def linear(self, tally: Tally) -> Linear:
        """What the intervals for the value itself are made of."""

    @abstractmethod
    def _count(self, batch: AnyBatchT) -> Tally:
        """What `batch` contributes; raises InvalidInputError if it lacks something."""

    @abstractmethod
    def _weight_columns(self) -> tuple[tuple[int, int], ...]:
        """Of every evaluated policy: where c w stands in the columns, and w in the tracked."""

    def add(self, batch: AnyBatchT) -> Self:
        """Count the rows of `batch`.

        Raises
        ------
        InvalidInputError
            If the batch lacks what the estimator needs, or if, with an interval that relies on
            them, a reward or a weight lies outside its declared range. Nothing is counted.
        """
        counted = self.tally_
        for part in batch.parts():
            tally = self._count(part)
            counted = tally if counted is None else counted.merge(tally)
        self.tally_ = counted
        return self

    def merge(self, other: Self) -> Self:
        """Count the rows that `other` counted; `other` stays as it is.

        Raises
        ------
        InvalidInputError
            If `other` is of another kind or has other parameters.
        """
        if type(other) is not type(self) or other.parameters() != self.parameters():
            raise InvalidInputError("other", f"expected the same {type(self).__name__} parameters")
        if other.tally_ is not None:
            self.tally_ = other.tally_ if self.tally_ is None else self.tally_.merge(other.tally_)
        return self

    def result(self, confidence: float = 0.95) -> Estimate:
        """Estimate and interval of everything counted so far.

        Parameters
        ----------
        confidence
            Nominal coverage of the interval, in (0, 1).

        Raises
        ------
        InvalidInputError
            If `confidence` is not in (0, 1).
        NotEnoughDataError
            If fewer than 2 rows were counted (3 for the empirical-likelihood interval, 4 for that
            of a difference), or the value is not defined because the policy takes none of the
            logged actions.
        NoIntervalError
            If the interval doesn't apply to these rows; it says why.
        """
        tally = self.tally_
        if tally is None or tally.moments.n < 2:
            raise NotEnoughDataError("an estimate with an interval needs at least 2 rows")
        value, _ = self.point(tally.moments.mean)
        if self.interval in LARGE_SAMPLE:
            lower, upper = self.large_sample(tally, confidence)
        else:
            lower, upper = self.linear(tally).interval(self.interval, confidence)
        return self.estimate(value, (lower, upper), confidence)

    def estimate(
        self,
        value: float,
        interval: tuple[float, float],
        confidence: float,
        method: IntervalMethod | None = None,
    ) -> Estimate:
        """Put value and interval together with what is known of the rows counted so far.

        The intervals are for the policy's value, centred on the one that they favour. Where the
        estimator's own value is a worse one and falls outside, the interval is extended to it:
        still safe, and no estimate outside its interval.
        """
        assert self.tally_ is not None
        method = self.interval if method is None else method
        n = self.tally_.moments.n
        ess, mean_weight, max_weight = self._support(self.tally_)
        doubts: list[Doubt] = []
        if method in LARGE_SAMPLE and self.tally_.nonzero_rewards * ess / n < _FEW_REWARDS:
            doubts.append("few-rewards")
        if method in _OWN:
            doubts += self.doubts_of_its_own()
        return Estimate(
            estimator=self.name,
            value=value,
            lower=min(interval[0], value),
            upper=max(interval[1], value),
            confidence=confidence,
            interval=method,
            n=n,
            ess=ess,
            mean_weight=mean_weight,
            max_weight=max_weight,
            nonzero_rewards=self.tally_.nonzero_rewards,
            doubts=tuple(doubts),
        )

    def doubts_of_its_own(self) -> tuple[Doubt, ...]:
        """Those that a biased estimator has with an interval for its own expectation."""
        return ()

    def _support(self, tally: Tally) -> tuple[float, float, float]:
        """Effective sample size, mean weight and largest weight, of the worse policy."""
        moments = tally.moments
        effective, means, largest = [], [], []
        for column, tracked in self._weight_columns():
            mean = float(moments.mean[column])
            mean_square = float(moments.scatter[column, column]) / moments.n + mean**2
            effective.append(moments.n * mean**2 / mean_square if mean_square > 0.0 else 0.0)
            means.append(mean / float(moments.mean[_KEEP]))
            largest.append(float(tally.highest[tracked]))
        return min(effective), max(means, key=lambda value: abs(value - 1.0)), max(largest)
