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
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from croupier.offline.ope.accumulators import Accumulator, Linear, Tally
from croupier.offline.ope.batches import ROUNDING, LoggedBatch
from croupier.offline.ope.intervals import FloatArray, IntervalMethod, Unseen
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("DR", "IPS", "SNDR", "SNIPS", "Estimator", "known_rows", "model_terms", "ratio")

# Where the columns of an estimator stand, and the quantities whose extremes are tracked.
_KEEP, _WEIGHT, _PAYOFF, _OFFSET_COLUMN = range(4)
_PREDICTION, _OFFSET, _FIRST_WEIGHT = range(1, 4)


class Estimator(Accumulator[LoggedBatch]):
    """Base of the estimators of one policy's value.

    A row's payoff is ``offset + w * residual``; the first columns are c, c w and c times the
    payoff, and those are what the intervals for the value itself are made of.

    Parameters
    ----------
    interval
        How :meth:`result` computes its interval. ``empirical-likelihood``, the default, is the
        safe one (see :func:`~croupier.offline.ope.intervals.empirical_likelihood_interval`): it
        needs the two ranges and covers at click-like rates too. ``empirical-bernstein`` and
        ``clopper-pearson`` (:mod:`~croupier.offline.ope.bounded`) need them too and hold for
        every number of rows. ``normal`` (``delta`` for a ratio) needs no range and is right for
        many, frequent, light-tailed rewards only.
    reward_range
        Smallest and largest possible reward, finite. The intervals that rely on it refuse
        rewards outside.
    weight_range
        Smallest and largest possible importance weight of any row that could have been logged,
        around 1; the upper end may be infinite. Not the extremes that happen to be in the log,
        but what the two policies allow, ``max_a pi(a|x) / mu(a|x)`` over the logged contexts or
        one over the floor. Infinity is safe and costs width; declare what is known. The intervals
        that rely on it refuse weights outside.

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
        """Goes into :class:`~croupier.offline.ope.Estimate`."""
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

    def columns(self, batch: LoggedBatch) -> FloatArray:
        """Per row, (c, c w, c payoff) and what else the estimator's value is made of."""
        offset, prediction = self.terms(batch)
        keep, weight = batch.keep_weight, batch.weight
        residual = batch.reward - prediction
        further = [keep * each for each in self.further(weight, offset, residual)]
        payoff = keep * (offset + weight * residual)
        return np.array((keep, keep * weight, payoff, *further)).T

    def further(
        self, weight: FloatArray, offset: FloatArray, residual: FloatArray
    ) -> Sequence[FloatArray]:
        """Per row, what else has a column, without its keep weight; each (n,)."""
        del weight, offset, residual
        return ()

    def point(self, mean: FloatArray) -> tuple[float, FloatArray]:
        """The value as a function of the columns' means, and its gradient there."""
        return ratio(mean, _PAYOFF, _KEEP)

    def check(self, batch: LoggedBatch) -> None:
        """Raise InvalidInputError if `batch` breaks the ranges that the interval relies on."""
        if self.interval not in {"normal", "delta"}:
            self.require_ranges(batch)

    def require_ranges(self, batch: LoggedBatch) -> None:
        """Raise InvalidInputError if rewards or weights lie outside their declared ranges."""
        if len(batch) == 0:
            return
        low, high = self.reward_range
        if batch.reward.min() < low or batch.reward.max() > high:
            raise InvalidInputError(
                "reward", f"expected values in reward_range, {low:g} to {high:g}"
            )
        low, high = self.weight_range
        weight = batch.weight
        if weight.min() < low * (1.0 - ROUNDING) or weight.max() > high * (1.0 + ROUNDING):
            raise InvalidInputError(
                "target_probability",
                f"expected weights in weight_range, {low:g} to {high:g}; the log has "
                f"{weight.min():g} to {weight.max():g}",
            )

    def linear(self, tally: Tally) -> Linear:
        """What the intervals for the value itself are made of."""
        first = np.eye(3, len(tally.moments.mean))
        unseen = known_rows(self.reward_range, (self.weight_range,), (1,), tally)
        return Linear(tally.moments.transform(first), unseen, self.reward_range)

    def _count(self, batch: LoggedBatch) -> Tally:
        self.check(batch)
        offset, prediction = self.terms(batch)
        weight = batch.weight
        return Tally.of(
            columns=self.columns(batch),
            tracked=(batch.keep_weight, prediction, offset, weight),
            nonzero=batch.reward * weight,
        )

    def _weight_columns(self) -> tuple[tuple[int, int], ...]:
        return ((_WEIGHT, _FIRST_WEIGHT),)


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
    intervals: ClassVar[tuple[IntervalMethod, ...]] = (
        "empirical-likelihood",
        "normal",
        "empirical-bernstein",
        "clopper-pearson",
    )


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
        """The value as a function of the columns' means, and its gradient there."""
        _require_weight(mean)
        return ratio(mean, _PAYOFF, _WEIGHT)


class DR(Estimator):
    """Doubly robust: ``sum c (q_pi + w (r - q_a)) / sum c``.

    Unbiased (with ``keep_prob`` 1) whatever the reward model, and of smaller variance than IPS
    the better the model predicts. The unseen rows of the empirical-likelihood interval take
    their predictions from the range that the model showed on the log. With a model that was
    fitted with :func:`~croupier.offline.ope.cross_fitting.mrdr_weights` it is the "more robust
    doubly robust" estimator (MRDR).

    Source: Dudík, Langford & Li, "Doubly Robust Policy Evaluation and Learning", ICML 2011.
    """

    kind: ClassVar[str] = "dr"
    intervals: ClassVar[tuple[IntervalMethod, ...]] = (
        "empirical-likelihood",
        "normal",
        "empirical-bernstein",
    )

    def terms(self, batch: LoggedBatch) -> tuple[FloatArray, FloatArray]:
        """Per row, the offset and the prediction that is taken off the reward; both (n,)."""
        return model_terms(batch, self.kind)


class SNDR(DR):
    """Self-normalised doubly robust: ``sum c q_pi / sum c + sum c w (r - q_a) / sum c w``.

    Bounded by the range of the predictions plus that of the residuals. The delta interval
    takes both denominators as the random sums that they are.

    Source: Thomas & Brunskill, "Data-Efficient Off-Policy Policy Evaluation for Reinforcement
    Learning", ICML 2016: the weighted doubly robust estimator, for one step.
    """

    kind: ClassVar[str] = "sndr"
    intervals: ClassVar[tuple[IntervalMethod, ...]] = ("empirical-likelihood", "delta")

    def further(
        self, weight: FloatArray, offset: FloatArray, residual: FloatArray
    ) -> Sequence[FloatArray]:
        """The offset, which stands in the payoff too."""
        del weight, residual
        return (offset,)

    def point(self, mean: FloatArray) -> tuple[float, FloatArray]:
        """The value as a function of the columns' means, and its gradient there."""
        _require_weight(mean)
        of_payoff, gradient = ratio(mean, _PAYOFF, _WEIGHT)
        in_payoff, of_offset = ratio(mean, _OFFSET_COLUMN, _WEIGHT)
        outside, more = ratio(mean, _OFFSET_COLUMN, _KEEP)
        return of_payoff - in_payoff + outside, gradient - of_offset + more


def model_terms(batch: LoggedBatch, kind: str) -> tuple[FloatArray, FloatArray]:
    """Per row, ``q_pi`` and ``q_a``; both (n,). Raises InvalidInputError if there is no model."""
    if batch.q_target is None or batch.q_logged is None:
        raise InvalidInputError("q_logged", f"expected a reward model's predictions for {kind}")
    return batch.q_target, batch.q_logged


def ratio(mean: FloatArray, numerator: int, denominator: int) -> tuple[float, FloatArray]:
    """``mean[numerator] / mean[denominator]`` and its gradient."""
    value = float(mean[numerator] / mean[denominator])
    gradient = np.zeros(len(mean))
    gradient[numerator] = 1.0 / mean[denominator]
    gradient[denominator] = -value / mean[denominator]
    return value, gradient


def known_rows(
    reward_range: tuple[float, float],
    weight_ranges: tuple[tuple[float, float], ...],
    signs: tuple[int, ...],
    tally: Tally,
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


def _require_weight(mean: FloatArray) -> None:
    if mean[_WEIGHT] <= 0.0:
        raise NotEnoughDataError("the evaluated policy takes none of the logged actions")
