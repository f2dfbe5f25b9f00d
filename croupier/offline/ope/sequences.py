"""Confidence sequences: intervals that hold at every time at once, for adaptive logs too.

An interval of fixed size is wrong to look at every night until it says what one hoped for. A
confidence sequence covers with the stated probability at all times together, so that a gate may
look whenever it likes and stop when it is convinced. It needs no independent rows: contexts may
drift and the logging policy may be a new generation every day, learned from the rows before, as
long as each row's propensity is right given what came before it, and the value is the same
throughout (else it is the running mean of values that is covered).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self

import numpy as np
import scipy

from croupier.offline.ope.accumulators import Accumulator, BatchT, Estimate
from croupier.offline.ope.batches import LoggedBatch, PairedBatch
from croupier.offline.ope.differences import Difference
from croupier.offline.ope.estimators import DR, IPS, SNIPS, Estimator
from croupier.offline.ope.intervals import require_confidence
from croupier.policy.errors import InvalidInputError, NoIntervalError, NotEnoughDataError

if TYPE_CHECKING:
    from croupier.offline.ope.intervals import FloatArray

__all__ = ("ConfidenceSequence", "Wealth", "log_wealth")


@dataclass(frozen=True, eq=False)
class Wealth:
    """What one side of the sequence has come to.

    For increments x with conditional mean m, predictions x' made before them and bounds b with
    ``x - x' >= -b`` known before them too.

    Attributes
    ----------
    total
        ``sum x / b``.
    time
        ``sum 1 / b``.
    variance
        ``sum ((x - x') / b)^2``.
    """

    total: float = 0.0
    time: float = 0.0
    variance: float = 0.0

    def merge(self, other: Wealth) -> Wealth:
        """The increments of both."""
        return Wealth(
            self.total + other.total, self.time + other.time, self.variance + other.variance
        )

    def lower(self, error: float, floor: float, rho: float) -> float:
        """Least mean that is compatible with the increments, at least `floor`."""
        threshold = -math.log(error)

        def excess(mean: float) -> float:
            wealth = log_wealth(self.total - mean * self.time, self.variance, rho)
            return float(wealth) - threshold

        high = max(floor, self.total / self.time)
        if excess(floor) <= 0.0:
            return floor
        return float(scipy.optimize.brentq(excess, floor, high, xtol=1e-13, rtol=1e-13))


def log_wealth(total: FloatArray | float, variance: FloatArray | float, rho: float) -> FloatArray:
    r"""Log of the gamma-exponential mixture, a supermartingale that starts at 1.

    For ``psi(l) = -log(1 - l) - l`` and any fixed l in [0, 1), ``exp(l s - psi(l) v)`` is one
    in ``s = sum (x - m) / b`` and ``v = sum ((x - x') / b)^2`` (Fan, Grama & Liu, "Exponential
    inequalities for martingales with applications", EJP 2015, lemma 4.1; Waudby-Smith & Ramdas,
    2024). Mixed over l with a gamma density of shape and rate rho::

        log W = s + v + rho log rho - (v + rho) log(s + v + rho)
                + log gamma(v + rho, s + v + rho) - log gamma(rho, rho)

    with the lower incomplete gamma function. Where ``s + v + rho <= 0`` it is told as -inf.

    Source: Howard, Ramdas, McAuliffe & Sekhon, "Time-uniform, nonparametric, nonasymptotic
    confidence sequences", Annals of Statistics 2021, proposition 9.

    Parameters
    ----------
    total, variance
        s and v, of one shape.
    rho
        Positive; the sequence is narrowest at a variance of the order of 10 rho.
    """
    total, variance = np.asarray(total, dtype=np.float64), np.asarray(variance, dtype=np.float64)
    shape = variance + rho
    at = total + shape
    safe = np.maximum(at, 1e-300)
    with np.errstate(divide="ignore"):
        found = (
            total
            + variance
            + rho * math.log(rho)
            - shape * np.log(safe)
            + scipy.special.gammaln(shape)
            + np.log(scipy.special.gammainc(shape, safe))
            - scipy.special.gammaln(rho)
            - np.log(scipy.special.gammainc(rho, rho))
        )
    return np.where(at > 0.0, found, -np.inf)


class ConfidenceSequence(Generic[BatchT]):
    r"""Anytime-valid interval for a policy's value or for the difference of two.

    With rewards scaled to [0, 1], the lower end bets on increments x that have the value as their
    conditional mean, the upper one on increments with its negative:

    - Weights unbounded: ``x = w r`` and ``w (1 - r) - 1``; of a difference
      ``w_b r + w_a (1 - r) - 1`` and the same with a and b swapped. They are bounded below, which
      is all that is needed.
    - Weights bounded: ``x = w (r - m) + m`` (of a difference ``(w_b - w_a)(r - m)``) and its
      negative, m being the mean reward of the rows before. Less variance for a larger bound.
    - A reward model: ``x = q_pi + w (r - q_a)`` and its negative.

    Predictions are running means; each side has half of the error.

    Rows are added in the order of time. Merging adds the sums of two parts, each of which was in
    the order of time, whether they are successive days or hash buckets of the same one: each
    part's predictions rest on earlier rows only, which is all that the proof asks. It isn't one
    pass, whose predictions would have known more, and is as valid. Only be sure to decide the
    parts without looking at rewards, and to merge all of them.

    Source: Waudby-Smith, Wu, Ramdas, Karampatziakis & Mineiro, "Anytime-valid off-policy inference
    for contextual bandits", ACM/IMS Journal of Data Science 2024 (arXiv 2210.10768), with the
    mixture of :func:`log_wealth`, as in the package vw-estimators, for predictable bets. That
    package lets predictions exceed 1, where the inequality behind the bound does not hold; here
    they are cut.

    Parameters
    ----------
    accumulator
        :class:`IPS`, :class:`SNIPS`, :class:`DR`, :class:`SNDR` or a :class:`Difference` of these,
        of which only the parameters are used; its value is the sequence's. Its ranges matter, its
        `interval` doesn't.
    rho
        Positive; the sequence is narrowest where the variance has come to about 10 rho.

    Raises
    ------
    InvalidInputError
        If a parameter is not of these; it names the parameter.
    """

    def __init__(self, accumulator: Accumulator[BatchT], *, rho: float = 1.0) -> None:
        pair = _estimators(accumulator)
        if not all(isinstance(each, IPS | SNIPS | DR) for each in pair):
            raise InvalidInputError("accumulator", "expected IPS, SNIPS, DR, SNDR or a Difference")
        if not 0.0 < rho < math.inf:
            raise InvalidInputError("rho", f"expected a positive number, got {rho}")
        self._estimators = pair
        self.accumulator: Accumulator[BatchT] = copy.copy(accumulator)
        self.accumulator.tally_ = None
        self.rho = rho
        self.sides_: tuple[Wealth, Wealth] = (Wealth(), Wealth())
        # What the predictions come from: rows, sums of w and w r (of 1 and r for a difference),
        # and of the increments of both sides.
        self.before_: FloatArray = np.zeros(5)

    def parameters(self) -> tuple[object, ...]:
        """The constructor's parameters; only sequences with equal ones can be merged."""
        return (type(self.accumulator), self.accumulator.parameters(), self.rho)

    def add(self, batch: BatchT) -> Self:
        """Count the rows of `batch`, which are later than those of all batches before.

        Raises
        ------
        InvalidInputError
            If the batch lacks what the estimator needs, or a reward or weight lies outside its
            declared range. Nothing is counted.
        """
        path = self.path(batch)
        self.accumulator.add(batch)
        self.sides_ = tuple(  # type: ignore[assignment]
            side.merge(Wealth(*(float(each.sum()) for each in increments)))
            for side, increments in zip(self.sides_, path.sides, strict=True)
        )
        self.before_ = path.after
        return self

    def merge(self, other: Self) -> Self:
        """Count the rows that `other` counted; `other` stays as it is.

        Raises
        ------
        InvalidInputError
            If `other` has other parameters.
        """
        if other.parameters() != self.parameters():
            raise InvalidInputError("other", "expected the same ConfidenceSequence parameters")
        self.accumulator.merge(other.accumulator)
        self.sides_ = (
            self.sides_[0].merge(other.sides_[0]),
            self.sides_[1].merge(other.sides_[1]),
        )
        self.before_ = self.before_ + other.before_
        return self

    def result(self, confidence: float = 0.95) -> Estimate:
        """Estimate with the sequence's interval at this time.

        Parameters
        ----------
        confidence
            Probability with which the intervals of all times cover, in (0, 1).

        Raises
        ------
        InvalidInputError
            If `confidence` is not in (0, 1).
        NotEnoughDataError
            If fewer than 2 rows were counted, or the estimator's value is not defined.
        NoIntervalError
            If keep probabilities vary (``keep-probabilities-vary``).
        """
        require_confidence(confidence)
        tally = self.accumulator.tally_
        if tally is None or tally.moments.n < 2:
            raise NotEnoughDataError("an estimate with an interval needs at least 2 rows")
        if tally.highest[0] > tally.lowest[0] * (1.0 + 1e-9):
            raise NoIntervalError(
                "keep-probabilities-vary", "expected rows that were all kept with one probability"
            )
        value, _ = self.accumulator.point(tally.moments.mean)
        low, high = self.accumulator.reward_range
        error = (1.0 - confidence) / 2.0
        pair = isinstance(self.accumulator, Difference)
        lower = self.sides_[0].lower(error, -1.0 if pair else 0.0, self.rho)
        upper = -self.sides_[1].lower(error, -1.0, self.rho)
        shift = 0.0 if pair else low
        interval = (shift + (high - low) * lower, shift + (high - low) * upper)
        return self.accumulator.estimate(value, interval, confidence, "confidence-sequence")

    def path(self, batch: BatchT) -> Path:
        """What every row of `batch` would add to the sums, were it added now."""
        first, second = self._estimators[0], self._estimators[-1]
        low, high = first.reward_range
        if isinstance(batch, PairedBatch):
            first.require_ranges(batch.a)
            second.require_ranges(batch.b)
            reward = (batch.a.reward - low) / (high - low)
            return self._of_pair(batch, reward)
        assert isinstance(batch, LoggedBatch)
        first.require_ranges(batch)
        return self._of_one(batch, (batch.reward - low) / (high - low))

    def _of_one(self, batch: LoggedBatch, reward: FloatArray) -> Path:
        """Increments for a value."""
        estimator, weight = self._estimators[0], batch.weight
        top = estimator.weight_range[1]
        known = (weight, weight * reward)
        if isinstance(estimator, DR):
            if not math.isfinite(top):
                raise InvalidInputError("weight_range", "expected a finite one for DR")
            offset, prediction = _scaled(estimator, batch)
            x = offset + weight * (reward - prediction)
            return self._path(known, (x, -x), (np.full(len(x), 1.0 + top),) * 2)
        if not math.isfinite(top):
            ones = np.ones(len(weight))
            both = (weight * reward, weight * (1.0 - reward) - 1.0)
            return self._path(known, both, (ones, ones))
        mean = self._running(known)
        x = weight * (reward - mean) + mean
        return self._path(known, (x, -x), (1.0 + (top - 1.0) * mean, top * (1.0 - mean) + mean))

    def _of_pair(self, batch: PairedBatch, reward: FloatArray) -> Path:
        """Increments for a difference."""
        a, b = self._estimators
        weight_a, weight_b = batch.a.weight, batch.b.weight
        top_a, top_b = a.weight_range[1], b.weight_range[1]
        known = (np.ones(len(reward)), reward)
        if isinstance(a, DR):
            if not math.isfinite(top_a + top_b):
                raise InvalidInputError("weight_range", "expected a finite one for DR")
            (offset_a, prediction), (offset_b, _) = _scaled(a, batch.a), _scaled(b, batch.b)
            x = offset_b - offset_a + (weight_b - weight_a) * (reward - prediction)
            return self._path(known, (x, -x), (np.full(len(x), 2.0 + max(top_a, top_b)),) * 2)
        if not math.isfinite(top_a + top_b):
            twos = np.full(len(reward), 2.0)
            both = (
                weight_b * reward + weight_a * (1.0 - reward) - 1.0,
                weight_a * reward + weight_b * (1.0 - reward) - 1.0,
            )
            return self._path(known, both, (twos, twos))
        mean = self._running(known)
        x = (weight_b - weight_a) * (reward - mean)
        bounds = (
            1.0 + np.maximum(top_a * (1.0 - mean), top_b * mean),
            1.0 + np.maximum(top_b * (1.0 - mean), top_a * mean),
        )
        return self._path(known, (x, -x), bounds)

    def _running(self, known: tuple[FloatArray, FloatArray]) -> FloatArray:
        """Mean reward of the rows before each row, in [0, 1]."""
        below = _before(known[0], self.before_[1]) + 1.0
        return np.clip((_before(known[1], self.before_[2]) + 0.5) / below, 0.0, 1.0)

    def _path(
        self,
        known: tuple[FloatArray, FloatArray],
        increments: tuple[FloatArray, FloatArray],
        bounds: tuple[FloatArray, FloatArray],
    ) -> Path:
        """Both sides, with the running mean of each as its prediction, cut to possible means."""
        n = len(known[0])
        rows = self.before_[0] + np.arange(n)
        pair = isinstance(self.accumulator, Difference)
        sides = []
        for side, (x, bound) in enumerate(zip(increments, bounds, strict=True)):
            start = 0.0 if pair else (0.5, -0.5)[side]
            lowest, highest = (-1.0, 1.0) if pair else ((0.0, 1.0), (-1.0, 0.0))[side]
            running = (_before(x, self.before_[3 + side]) + start) / (rows + 1.0)
            prediction = np.clip(running, lowest, highest)
            sides.append((x / bound, 1.0 / bound, ((x - prediction) / bound) ** 2))
        after = np.array([n, *(each.sum() for each in (*known, *increments))])
        return Path((sides[0], sides[1]), self.before_ + after)


def _estimators(accumulator: Accumulator[Any]) -> tuple[Any, ...]:
    """The estimators of both policies, or the one."""
    if isinstance(accumulator, Difference):
        return (accumulator.a, accumulator.b)
    return (accumulator,)


@dataclass(frozen=True, eq=False)
class Path:
    """What rows add: per side, their x / b, 1 / b and ((x - x') / b)^2; what is known after."""

    sides: tuple[tuple[FloatArray, FloatArray, FloatArray], ...]
    after: FloatArray


def _before(values: FloatArray, start: float) -> FloatArray:
    """`start` plus the sum of all values before each one."""
    return start + np.concatenate(([0.0], np.cumsum(values)[:-1])) if len(values) else values


def _scaled(estimator: Estimator, batch: LoggedBatch) -> tuple[FloatArray, FloatArray]:
    """Offset and prediction of a reward model, with rewards scaled to [0, 1]."""
    low, high = estimator.reward_range
    offset, prediction = ((each - low) / (high - low) for each in estimator.terms(batch))
    for name, each in (("q_target", offset), ("q_logged", prediction)):
        if len(each) and (each.min() < -1e-9 or each.max() > 1.0 + 1e-9):
            raise InvalidInputError(name, f"expected values in reward_range, {low:g} to {high:g}")
    return offset, prediction
