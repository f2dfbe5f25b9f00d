"""Logs of several generations: whose propensity a row is weighed by.

A log of nightly generations holds rows of many logging policies. Three ways to estimate from them:

- *Naive*: every row by the propensity it was drawn with. Nothing to do; unbiased, and bad where one
  generation hardly plays what the evaluated policy takes.
- *Balanced* (:func:`balance`): every row by the probability that the mixture of all generations
  would have drawn it, ``w = pi(a|x) / sum_k s_k mu_k(a|x)``, s_k being the share of rows of
  generation k. Unbiased, and of no larger variance than naive (Agarwal et al.). Needs all
  generations' probabilities of the logged action, which pmfs of saved generations give. Any
  estimator and interval then takes the batch as it is.
- *Weighted* (:class:`Weighted`): an estimate per generation, combined by the inverse of their
  variances. Needs no other propensities.

Source: Agarwal, Basu, Schnabel & Joachims, "Effective Evaluation using Logged Bandit Feedback from
Multiple Loggers", KDD 2017 (naive, weighted and balanced IPS); with a reward model, Kallus, Saito &
Uehara, "Optimal Off-Policy Evaluation from Multiple Logging Policies", ICML 2021, which shows
balanced DR to be efficient.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

import numpy as np

from croupier.offline.ope.accumulators import LARGE_SAMPLE
from croupier.offline.ope.intervals import normal_interval, require_confidence
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from croupier.offline.ope.accumulators import Estimate
    from croupier.offline.ope.batches import LoggedBatch
    from croupier.offline.ope.estimators import Estimator
    from croupier.offline.ope.intervals import Moments

__all__ = ("Combination", "Weighted", "balance")

Combination: TypeAlias = Literal["weights", "payoffs"]
"""What variances are taken from: the importance weights alone, or the weighted rewards."""


def balance(batch: LoggedBatch, propensities: ArrayLike, shares: ArrayLike) -> LoggedBatch:
    """Weigh rows by the mixture of all generations, the balanced heuristic.

    Rows of a fixed number per generation vary less than rows of the mixture, so that the intervals
    of the balanced batch are on the safe side.

    Parameters
    ----------
    batch
        Rows of any of the generations.
    propensities
        Probability that each generation gives to the logged action, in [0, 1], shape (n, G); that
        of the row's own one is in it.
    shares
        Share of each generation's rows in the whole log, not in this batch, so that batches add
        up to the whole; positive, sum 1, shape (G,).

    Raises
    ------
    InvalidInputError
        If a shape or a value is another one, or the row's own propensity isn't among them.
    """
    table = np.asarray(propensities, dtype=np.float64)
    share = np.asarray(shares, dtype=np.float64)
    if share.ndim != 1 or not (share > 0.0).all() or abs(share.sum() - 1.0) > 1e-6:
        raise InvalidInputError("shares", "expected positive numbers of shape (G,) with sum 1")
    if table.shape != (len(batch), len(share)):
        expected = (len(batch), len(share))
        raise InvalidInputError("propensities", f"expected shape {expected}, got {table.shape}")
    if not ((table >= 0.0) & (table <= 1.0 + 1e-9)).all():
        raise InvalidInputError("propensities", "expected values in [0, 1]")
    own = np.abs(table - batch.propensity[:, None]).min(axis=1, initial=math.inf)
    if (own > 1e-6).any():
        row = int(np.argmax(own))
        raise InvalidInputError(
            "propensities", f"expected the row's own propensity among them, not so in row {row}"
        )
    return replace(batch, propensity=table @ share)


class Weighted:
    r"""One estimate per generation, combined by the inverse of their variances.

    ``v = sum_g l_g v_g`` with ``l_g`` proportional to ``n_g / d_g`` and sum 1, where d_g is the
    divergence of the generation: the variance of its payoffs, or, by default, the mean square of
    its weights, which is that variance but for the rewards' part and doesn't depend on them. The
    variance that a generation without a click shows is 0, and its estimate 0 would then win;
    choose ``payoffs`` where every generation has plenty of rewards. The normal interval adds up
    the independent generations' variances, taking the combination as known.

    Source: Agarwal et al., KDD 2017 (weighted IPS).

    Parameters
    ----------
    make
        Makes the estimator of one generation; with a normal or delta interval.
    by
        What the variances are taken from.

    Raises
    ------
    InvalidInputError
        If a parameter is not of these.
    """

    def __init__(self, make: Callable[[], Estimator], *, by: Combination = "weights") -> None:
        if make().interval not in LARGE_SAMPLE:
            raise InvalidInputError("make", "expected an estimator with a normal or delta interval")
        if by not in {"weights", "payoffs"}:
            raise InvalidInputError("by", f"expected 'weights' or 'payoffs', got {by!r}")
        self.make = make
        self.by: Combination = by
        self.estimators_: dict[int, Estimator] = {}

    def add(self, batch: LoggedBatch, generation: int) -> Self:
        """Count rows that one generation drew.

        Raises
        ------
        InvalidInputError
            As the estimator does. Nothing is counted.
        """
        estimator = self.estimators_.get(generation)
        if estimator is None:
            estimator = self.make()
        self.estimators_[generation] = estimator.add(batch)
        return self

    def merge(self, other: Self) -> Self:
        """Count the rows that `other` counted; `other` stays as it is.

        Raises
        ------
        InvalidInputError
            If `other` has other parameters.
        """
        if other.by != self.by or other.make().parameters() != self.make().parameters():
            raise InvalidInputError("other", "expected the same Weighted parameters")
        for generation, estimator in other.estimators_.items():
            self.estimators_[generation] = self.estimators_.get(generation, self.make()).merge(
                estimator
            )
        return self

    def result(self, confidence: float = 0.95) -> Estimate:
        """Combined estimate with its normal interval; the support is that of all rows together.

        Raises
        ------
        InvalidInputError
            If `confidence` is not in (0, 1).
        NotEnoughDataError
            If there are no generations of at least 2 rows that played the policy's actions.
        """
        require_confidence(confidence)
        values, variances, precisions = [], [], []
        for estimator in self.estimators_.values():
            tally = estimator.tally_
            if tally is None or tally.moments.n < 2 or tally.moments.mean[1] <= 0.0:
                continue
            value, gradient = estimator.point(tally.moments.mean)
            error = tally.moments.standard_error(gradient)
            values.append(value)
            variances.append(error**2)
            precisions.append(self._precision(tally.moments, error))
        if not values:
            raise NotEnoughDataError("no generation has 2 rows and plays the policy's actions")
        share = np.array(precisions) / np.sum(precisions)
        value = float(share @ np.array(values))
        error = math.sqrt(float(share**2 @ np.array(variances)))
        interval = normal_interval(value, error, confidence)
        return self._pooled().estimate(value, interval, confidence)

    def _precision(self, moments: Moments, error: float) -> float:
        """One over the variance of a generation's estimate, up to a common factor."""
        if self.by == "weights":
            mean_square = moments.scatter[1, 1] / moments.n + moments.mean[1] ** 2
            return float(moments.n * moments.mean[0] ** 2 / mean_square)
        return 1.0 / max(error**2, 1e-300)

    def _pooled(self) -> Estimator:
        """All rows together, for what is said of their support."""
        pooled = self.make()
        for estimator in self.estimators_.values():
            pooled.merge(estimator)
        return pooled
