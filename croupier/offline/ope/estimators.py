"""Off-policy estimators as mergeable accumulators: what a policy would have earned.

A nightly job evaluates a policy over hash buckets of the log: one accumulator per bucket, merged
at the end, gives the same figure as one pass over everything. An accumulator keeps the moments of
a few columns and no row, so its size doesn't depend on the log's.

Symbols, used throughout the package: mu is the logging policy and pi the evaluated one; row i has
reward r, propensity p = mu(a|x), weight ``w = pi(a|x) / p``, keep probability k and keep weight
``c = 1 / k``; q is a reward model, with predictions ``q_a = q(x, a)`` at the logged action and
``q_pi = sum_a pi(a|x) q(x, a)``. Sums run over the rows that were kept.

**Subsampled logs.** The value is the mean over the whole stream of decisions, kept or not.
A kept row stands for c decisions, so the mean of any f over the stream is estimated by
``sum c f / sum c`` (Hájek's ratio). Dividing by the known length of the stream instead would be
unbiased too, but would count the luck of the subsampling as variance: with a constant keep
probability the ratio is just the mean of the kept rows. The intervals treat the denominator
as the random sum that it is, and stay right where k depends on the reward (all clicks kept, one
in ten of the rest), as long as k is the probability with which the row was really kept.

**What all of it rests on.** Propensities are right; every action that pi takes can be drawn
under mu; rewards of different decisions don't depend on each other; the evaluated policy was not
trained on the rows it is evaluated on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar, Generic, Self, TypeVar

import msgspec
import numpy as np

from croupier.offline.ope.intervals import (
    FloatArray,
    IntervalMethod,
    Moments,
    Unseen,
    empirical_likelihood_interval,
    normal_interval,
)
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

__all__ = (
    "DR",
    "IPS",
    "SNIPS",
    "Difference",
    "Estimate",
    "Estimator",
    "LoggedBatch",
    "PairedBatch",
)

# Probabilities are sums of float64 numbers: this much above 1 is rounding, more is an error.
_ROUNDING = 1e-9

_EMPIRICAL_LIKELIHOOD: IntervalMethod = "empirical-likelihood"

# Where the columns of an estimator stand, and the quantities whose extremes are tracked.
_KEEP, _WEIGHT, _PAYOFF = range(3)
_PREDICTION, _OFFSET, _FIRST_WEIGHT = range(1, 4)


@dataclass(frozen=True, eq=False, kw_only=True)
class LoggedBatch:
    """Rows of a log as one policy sees them; every array has shape (n,), n may be 0.

    Anything that numpy can turn into a float64 array is accepted and stored as one.

    Attributes
    ----------
    reward
        Finite.
    propensity
        Probability with which the logged action was drawn, in (0, 1].
    target_probability
        Probability that the evaluated policy gives to the logged action, in [0, 1].
    keep_prob
        Probability with which the row was kept in the log, in (0, 1]; 1 if None.
    q_logged, q_target
        Reward model at the logged action, and its mean under the evaluated policy; finite. Both
        or neither; needed by :class:`DR`. The model must not have been fitted on these rows
        (cross-fitting), else the estimate flatters policies that share its errors.

    Raises
    ------
    InvalidInputError
        If a field holds something else; it names the field.
    """

    reward: FloatArray
    propensity: FloatArray
    target_probability: FloatArray
    keep_prob: FloatArray | None = None
    q_logged: FloatArray | None = None
    q_target: FloatArray | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                object.__setattr__(self, field.name, _vector(field.name, value))
        n = len(self.reward)
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and len(value) != n:
                raise InvalidInputError(field.name, f"expected {n} rows, got {len(value)}")
        _require_probability("propensity", self.propensity, positive=True)
        _require_probability("target_probability", self.target_probability, positive=False)
        if self.keep_prob is not None:
            _require_probability("keep_prob", self.keep_prob, positive=True)
        if (self.q_logged is None) != (self.q_target is None):
            missing = "q_logged" if self.q_logged is None else "q_target"
            raise InvalidInputError(missing, "expected q_logged and q_target, or neither")

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def weight(self) -> FloatArray:
        """Importance weights ``target_probability / propensity``, shape (n,)."""
        return self.target_probability / self.propensity

    @property
    def keep_weight(self) -> FloatArray:
        """How many decisions of the stream a row stands for, ``1 / keep_prob``, shape (n,)."""
        return np.ones(len(self)) if self.keep_prob is None else 1.0 / self.keep_prob


@dataclass(frozen=True, eq=False, kw_only=True)
class PairedBatch:
    """The same rows as two policies see them.

    Attributes
    ----------
    a, b
        Equal in everything but `target_probability` and `q_target`.

    Raises
    ------
    InvalidInputError
        If the two differ in anything else; it names the field of `b`.
    """

    a: LoggedBatch
    b: LoggedBatch

    def __post_init__(self) -> None:
        for name in ("reward", "propensity", "keep_prob", "q_logged"):
            first, second = getattr(self.a, name), getattr(self.b, name)
            same = first is second or (
                first is not None and second is not None and np.array_equal(first, second)
            )
            if not same:
                raise InvalidInputError(f"b.{name}", f"expected the same rows as a.{name}")

    def __len__(self) -> int:
        return len(self.a)


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


BatchT = TypeVar("BatchT", LoggedBatch, PairedBatch)


@dataclass(frozen=True, eq=False)
class _Tally:
    """All that is remembered of some rows: moments of columns, extremes of others, a count."""

    moments: Moments
    lowest: FloatArray
    highest: FloatArray
    nonzero_rewards: int

    @classmethod
    def of(cls, columns: FloatArray, tracked: FloatArray, nonzero: FloatArray) -> _Tally:
        return cls(
            Moments.of(columns),
            tracked.min(axis=0, initial=math.inf),
            tracked.max(axis=0, initial=-math.inf),
            int(np.count_nonzero(nonzero)),
        )

    def merge(self, other: _Tally) -> _Tally:
        return _Tally(
            self.moments.merge(other.moments),
            np.minimum(self.lowest, other.lowest),
            np.maximum(self.highest, other.highest),
            self.nonzero_rewards + other.nonzero_rewards,
        )


class _Accumulator(ABC, Generic[BatchT]):
    """What estimators and differences share: sums that can be added to, merged and read.

    A subclass says which columns a batch gives and what smooth function of their means its value
    is; the first column is the keep weight. The state, `tally_`, is all that pickling has to carry
    besides the constructor's parameters.
    """

    interval: IntervalMethod
    reward_range: tuple[float, float]

    def __init__(self) -> None:
        self.tally_: _Tally | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """Goes into :class:`Estimate`."""

    @abstractmethod
    def parameters(self) -> tuple[object, ...]:
        """The constructor's parameters; only accumulators with equal ones can be merged."""

    @abstractmethod
    def _count(self, batch: BatchT) -> _Tally:
        """What `batch` contributes; raises InvalidInputError if it lacks something."""

    @abstractmethod
    def _point(self, mean: FloatArray) -> tuple[float, FloatArray]:
        """The value as a function of the columns' means, and its gradient there."""

    @abstractmethod
    def _empirical_likelihood(self, tally: _Tally, confidence: float) -> tuple[float, float]:
        """The interval of that name."""

    @abstractmethod
    def _weight_columns(self) -> tuple[tuple[int, int], ...]:
        """Of every evaluated policy: where c w stands in the columns, and w in the tracked."""

    def add(self, batch: BatchT) -> Self:
        """Count the rows of `batch`.

        Raises
        ------
        InvalidInputError
            If the batch lacks what the estimator needs, or if, with the empirical-likelihood
            interval, a reward or a weight lies outside its declared range. Nothing is counted.
        """
        counted = self._count(batch)
        self.tally_ = counted if self.tally_ is None else self.tally_.merge(counted)
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
        """
        tally = self.tally_
        if tally is None or tally.moments.n < 2:
            raise NotEnoughDataError("an estimate with an interval needs at least 2 rows")
        moments = tally.moments
        value, gradient = self._point(moments.mean)
        if self.interval == _EMPIRICAL_LIKELIHOOD:
            lower, upper = self._empirical_likelihood(tally, confidence)
            # The interval is one for the policy's value, centred on the value that the likelihood
            # favours. Where the estimator's own value is a worse one and falls outside, the
            # interval is extended to it: still safe, and no estimate outside its interval.
            lower, upper = min(lower, value), max(upper, value)
        else:
            lower, upper = normal_interval(value, moments.standard_error(gradient), confidence)
        ess, mean_weight, max_weight = self._support(tally)
        return Estimate(
            estimator=self.name,
            value=value,
            lower=lower,
            upper=upper,
            confidence=confidence,
            interval=self.interval,
            n=moments.n,
            ess=ess,
            mean_weight=mean_weight,
            max_weight=max_weight,
            nonzero_rewards=tally.nonzero_rewards,
        )

    def _support(self, tally: _Tally) -> tuple[float, float, float]:
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


class Estimator(_Accumulator[LoggedBatch]):
    """Base of the estimators of one policy's value.

    A row's payoff is ``offset + w * residual``; the columns are c, c w and c times the payoff.

    Parameters
    ----------
    interval
        How :meth:`result` computes its interval. ``empirical-likelihood``, the default, is the
        safe one (see :func:`~croupier.offline.ope.intervals.empirical_likelihood_interval`): it
        needs the two ranges and covers at click-like rates too. ``normal`` (``delta`` for a
        ratio) needs no range and is right for many, frequent, light-tailed rewards only.
    reward_range
        Smallest and largest possible reward, finite. Only used by the default interval, which
        refuses rewards outside.
    weight_range
        Smallest and largest possible importance weight of any row that could have been logged,
        around 1; the upper end may be infinite. Not the extremes that happen to be in the log,
        but what the two policies allow, ``max_a pi(a|x) / mu(a|x)`` over the logged contexts or
        one over the floor. Infinity is safe and costs width; declare what is known. Only used by
        the default interval, which refuses weights outside.

    Raises
    ------
    InvalidInputError
        If a parameter is not of these; it names the parameter.
    """

    kind: ClassVar[str]
    intervals: ClassVar[tuple[IntervalMethod, ...]]

    def __init__(
        self,
        *,
        interval: IntervalMethod = "empirical-likelihood",
        reward_range: tuple[float, float] = (0.0, 1.0),
        weight_range: tuple[float, float] = (0.0, math.inf),
    ) -> None:
        super().__init__()
        if interval not in self.intervals:
            raise InvalidInputError(
                "interval", f"expected one of {self.intervals} for {self.kind}, got {interval!r}"
            )
        if not (-math.inf < reward_range[0] < reward_range[1] < math.inf):
            raise InvalidInputError(
                "reward_range", f"expected two finite numbers in order, got {reward_range!r}"
            )
        if not (0.0 <= weight_range[0] <= 1.0 <= weight_range[1]):
            raise InvalidInputError(
                "weight_range", f"expected two numbers >= 0 around 1, got {weight_range!r}"
            )
        self.interval = interval
        self.reward_range = reward_range
        self.weight_range = weight_range

    @property
    def name(self) -> str:
        """Goes into :class:`Estimate`."""
        return self.kind

    def parameters(self) -> tuple[object, ...]:
        """The constructor's parameters; only estimators with equal ones can be merged."""
        return (self.interval, self.reward_range, self.weight_range)

    def terms(self, batch: LoggedBatch) -> tuple[FloatArray, FloatArray]:
        """Per row, the offset and the prediction that is taken off the reward; both (n,).

        The payoff is ``offset + w * (reward - prediction)``; both are 0 without a reward model.
        """
        zeros = np.zeros(len(batch))
        return zeros, zeros

    def point(self, mean: FloatArray) -> tuple[float, FloatArray]:
        """The value as a function of the means of (c, c w, c payoff), and its gradient there."""
        return _ratio(mean, _PAYOFF, _KEEP)

    def check(self, batch: LoggedBatch) -> None:
        """Raise InvalidInputError if `batch` breaks the ranges that the interval relies on."""
        if self.interval != _EMPIRICAL_LIKELIHOOD or len(batch) == 0:
            return
        low, high = self.reward_range
        if batch.reward.min() < low or batch.reward.max() > high:
            raise InvalidInputError(
                "reward", f"expected values in reward_range, {low:g} to {high:g}"
            )
        low, high = self.weight_range
        weight = batch.weight
        if weight.min() < low * (1.0 - _ROUNDING) or weight.max() > high * (1.0 + _ROUNDING):
            raise InvalidInputError(
                "target_probability",
                f"expected weights in weight_range, {low:g} to {high:g}; the log has "
                f"{weight.min():g} to {weight.max():g}",
            )

    def _count(self, batch: LoggedBatch) -> _Tally:
        self.check(batch)
        offset, prediction = self.terms(batch)
        keep, weight = batch.keep_weight, batch.weight
        payoff = offset + weight * (batch.reward - prediction)
        return _Tally.of(
            columns=np.column_stack((keep, keep * weight, keep * payoff)),
            tracked=np.column_stack((keep, prediction, offset, weight)),
            nonzero=batch.reward * weight,
        )

    def _point(self, mean: FloatArray) -> tuple[float, FloatArray]:
        return self.point(mean)

    def _weight_columns(self) -> tuple[tuple[int, int], ...]:
        return ((_WEIGHT, _FIRST_WEIGHT),)

    def _empirical_likelihood(self, tally: _Tally, confidence: float) -> tuple[float, float]:
        unseen = _unseen(self.reward_range, (self.weight_range,), (1,), tally)
        return empirical_likelihood_interval(tally.moments, unseen, confidence, self.reward_range)


class IPS(Estimator):
    """Inverse propensity scoring: ``sum c w r / sum c``.

    Unbiased (with ``keep_prob`` 1) whatever the rewards, at the price of a variance that grows
    with the weights. Its normal interval is the delta method of the ratio to ``sum c``, which
    for an unsubsampled log is the normal interval of a mean.

    Source: Horvitz & Thompson, "A Generalization of Sampling Without Replacement from a Finite
    Universe", JASA 1952; for bandits Langford, Strehl & Wortman, "Exploration Scavenging",
    ICML 2008.
    """

    kind: ClassVar[str] = "ips"
    intervals: ClassVar[tuple[IntervalMethod, ...]] = ("empirical-likelihood", "normal")


class SNIPS(Estimator):
    """Self-normalised inverse propensity scoring: ``sum c w r / sum c w``.

    Stays within the range of the rewards and doesn't change if a constant is added to all of
    them; biased by O(1/n). The delta interval is that of a ratio with a random denominator,
    ``var = mean((c w (r - value))^2) / mean(c w)^2 / n``: freezing the denominator, as some
    libraries do, doubles the width where rewards are mostly 1.

    Source: Swaminathan & Joachims, "The Self-Normalized Estimator for Counterfactual Learning",
    NeurIPS 2015; variance as in Owen, "Monte Carlo theory, methods and examples", 2013, chapter 9.
    """

    kind: ClassVar[str] = "snips"
    intervals: ClassVar[tuple[IntervalMethod, ...]] = ("empirical-likelihood", "delta")

    def point(self, mean: FloatArray) -> tuple[float, FloatArray]:
        """The value as a function of the means of (c, c w, c payoff), and its gradient there."""
        if mean[_WEIGHT] <= 0.0:
            raise NotEnoughDataError("the evaluated policy takes none of the logged actions")
        return _ratio(mean, _PAYOFF, _WEIGHT)


class DR(Estimator):
    """Doubly robust: ``sum c (q_pi + w (r - q_a)) / sum c``.

    Unbiased (with ``keep_prob`` 1) whatever the reward model, and of smaller variance than IPS
    the better the model predicts. The unseen rows of the empirical-likelihood interval take
    their predictions from the range that the model showed on the log.

    Source: Dudík, Langford & Li, "Doubly Robust Policy Evaluation and Learning", ICML 2011.
    """

    kind: ClassVar[str] = "dr"
    intervals: ClassVar[tuple[IntervalMethod, ...]] = ("empirical-likelihood", "normal")

    def terms(self, batch: LoggedBatch) -> tuple[FloatArray, FloatArray]:
        """Per row, the offset and the prediction that is taken off the reward; both (n,)."""
        if batch.q_target is None or batch.q_logged is None:
            raise InvalidInputError("q_logged", "expected a reward model's predictions for DR")
        return batch.q_target, batch.q_logged


class Difference(_Accumulator[PairedBatch]):
    """Value of policy b less value of policy a, both evaluated on the same rows.

    What the rows share cancels, so the interval is far narrower than two separate ones where the
    policies mostly agree. The large-sample interval uses the variance of the difference of the
    two influence functions, ``var(psi_b - psi_a)``, which holds the covariance. The
    empirical-likelihood interval has the payoff ``u_b - u_a`` (for IPS ``c (w_b - w_a) r``, the
    net weight having mean 0 and reaching from ``-max w_a`` to ``max w_b``) and keeps both
    ``E[w_a] = 1`` and ``E[w_b] = 1`` as controls, which implies ``E[w_b - w_a] = 0`` and is
    stronger: for close policies the interval is up to three times narrower at equal coverage.

    Parameters
    ----------
    a
        How policy a is evaluated: an estimator, of which only the parameters are used.
    b
        The same for policy b: of the same class, with the same `interval` and `reward_range`;
        its `weight_range` may differ. Same as `a` if None. For the difference to the logging
        policy itself, give a the weight range (1, 1).

    Raises
    ------
    InvalidInputError
        If the two don't go together.
    """

    def __init__(self, a: Estimator, b: Estimator | None = None) -> None:
        super().__init__()
        b = a if b is None else b
        alike = a.interval == b.interval and a.reward_range == b.reward_range
        if type(a) is not type(b) or not alike:
            raise InvalidInputError("b", "expected a's class, interval and reward_range")
        self.a = a
        self.b = b
        self.interval = a.interval
        self.reward_range = a.reward_range

    @property
    def name(self) -> str:
        """Goes into :class:`Estimate`."""
        return f"{self.a.kind}-difference"

    def parameters(self) -> tuple[object, ...]:
        """What both estimators were constructed with."""
        return (type(self.a), self.a.parameters(), self.b.parameters())

    def _count(self, batch: PairedBatch) -> _Tally:
        self.a.check(batch.a)
        self.b.check(batch.b)
        # The prediction at the logged action is the same for both policies.
        offset_a, prediction = self.a.terms(batch.a)
        offset_b, _ = self.b.terms(batch.b)
        keep, weight_a, weight_b = batch.a.keep_weight, batch.a.weight, batch.b.weight
        residual = batch.a.reward - prediction
        columns = [keep]
        for offset, weight in ((offset_a, weight_a), (offset_b, weight_b)):
            columns += [keep * weight, keep * (offset + weight * residual)]
        return _Tally.of(
            columns=np.column_stack(columns),
            tracked=np.column_stack((keep, prediction, offset_b - offset_a, weight_a, weight_b)),
            nonzero=batch.a.reward * (weight_a + weight_b),
        )

    def _point(self, mean: FloatArray) -> tuple[float, FloatArray]:
        gradient = np.zeros(len(mean))
        difference = 0.0
        for estimator, columns, sign in (
            (self.a, [0, 1, 2], -1.0),
            (self.b, [0, 3, 4], 1.0),
        ):
            value, of_value = estimator.point(mean[columns])
            difference += sign * value
            gradient[columns] += sign * of_value
        return difference, gradient

    def _weight_columns(self) -> tuple[tuple[int, int], ...]:
        return ((1, _FIRST_WEIGHT), (3, _FIRST_WEIGHT + 1))

    def _empirical_likelihood(self, tally: _Tally, confidence: float) -> tuple[float, float]:
        to_difference = np.array(
            [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, -1, 0, 1]], dtype=np.float64
        )
        moments = tally.moments.transform(to_difference)
        weight_ranges = (self.a.weight_range, self.b.weight_range)
        unseen = _unseen(self.reward_range, weight_ranges, (-1, 1), tally)
        span = self.reward_range[1] - self.reward_range[0]
        return empirical_likelihood_interval(moments, unseen, confidence, (-span, span))


def _ratio(mean: FloatArray, numerator: int, denominator: int) -> tuple[float, FloatArray]:
    """``mean[numerator] / mean[denominator]`` and its gradient."""
    value = float(mean[numerator] / mean[denominator])
    gradient = np.zeros(len(mean))
    gradient[numerator] = 1.0 / mean[denominator]
    gradient[denominator] = -value / mean[denominator]
    return value, gradient


def _unseen(
    reward_range: tuple[float, float],
    weight_ranges: tuple[tuple[float, float], ...],
    signs: tuple[int, ...],
    tally: _Tally,
) -> Unseen:
    """What an unseen row could be, from the declared ranges and what the log showed.

    The weights that were logged are tried next to the declared ends because the ends alone protect
    nothing where they are far beyond all logged weights: the unseen row then only moves the
    regression on the control. Weight 1 is a possible weight always.
    """
    weights = tuple(
        tuple(sorted({*weight_range, 1.0, float(tally.lowest[i]), float(tally.highest[i])}))
        for i, weight_range in enumerate(weight_ranges, start=_FIRST_WEIGHT)
    )
    return Unseen(
        keep=float(tally.highest[_KEEP]),
        weights=weights,
        signs=signs,
        residual=(
            reward_range[0] - float(tally.highest[_PREDICTION]),
            reward_range[1] - float(tally.lowest[_PREDICTION]),
        ),
        offset=(float(tally.lowest[_OFFSET]), float(tally.highest[_OFFSET])),
    )


def _vector(name: str, value: object) -> FloatArray:
    """`value` as a float64 vector of finite numbers."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(name, f"expected numbers: {error}") from error
    if array.ndim != 1:
        raise InvalidInputError(name, f"expected shape (n,), got {array.shape}")
    if not np.isfinite(array).all():
        raise InvalidInputError(name, "expected finite numbers only")
    return array


def _require_probability(name: str, array: FloatArray, *, positive: bool) -> None:
    too_low = array <= 0.0 if positive else array < 0.0
    wrong = too_low | (array > 1.0 + _ROUNDING)
    if wrong.any():
        row = int(np.argmax(wrong))
        interval = "(0, 1]" if positive else "[0, 1]"
        raise InvalidInputError(
            name, f"expected values in {interval}, got {array[row]} in row {row}"
        )
