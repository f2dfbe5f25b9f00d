"""Two policies on the same rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from croupier.offline.ope.accumulators import Accumulator, Linear, Tally
from croupier.offline.ope.batches import PairedBatch
from croupier.offline.ope.estimators import known_rows
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from croupier.offline.ope.accumulators import Doubt
    from croupier.offline.ope.estimators import Estimator
    from croupier.offline.ope.intervals import FloatArray

__all__ = ("Difference",)

_KEEP, _WEIGHT, _PAYOFF = range(3)
_FIRST_WEIGHT = 3


class Difference(Accumulator[PairedBatch]):
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
        The same for policy b: of the same class, with the same parameters; its `weight_range`
        may differ. Same as `a` if None. For the difference to the logging policy itself, give a
        the weight range (1, 1).

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
        if a.interval == "outer":
            raise InvalidInputError("a", "expected another interval than outer for a difference")
        self.a = a
        self.b = b
        self.interval = a.interval
        self.reward_range = a.reward_range

    @property
    def name(self) -> str:
        """Goes into :class:`~croupier.offline.ope.Estimate`."""
        return f"{self.b.name}-difference"

    def parameters(self) -> tuple[object, ...]:
        """What both estimators were constructed with."""
        return (type(self.a), self.a.parameters(), self.b.parameters())

    def columns(self, batch: PairedBatch) -> FloatArray:
        """Keep weight, the other columns of a, the other columns of b."""
        of_b = self.b.columns(batch.b)
        return np.vstack((self.a.columns(batch.a).T, of_b.T[1:])).T

    def point(self, mean: FloatArray) -> tuple[float, FloatArray]:
        """The value as a function of the columns' means, and its gradient there."""
        gradient = np.zeros(len(mean))
        width = (len(mean) + 1) // 2
        of_a = np.arange(width)
        of_b = np.concatenate(([_KEEP], np.arange(width, len(mean))))
        value_a, gradient_a = self.a.point(mean[of_a])
        value_b, gradient_b = self.b.point(mean[of_b])
        gradient[of_a] -= gradient_a
        gradient[of_b] += gradient_b
        return value_b - value_a, gradient

    def linear(self, tally: Tally) -> Linear:
        """What the intervals for the difference itself are made of."""
        k = len(tally.moments.mean)
        of_b = (k + 1) // 2 - 1
        change = np.zeros((4, k))
        change[0, _KEEP] = change[1, _WEIGHT] = change[2, of_b + _WEIGHT] = 1.0
        change[3, of_b + _PAYOFF], change[3, _PAYOFF] = 1.0, -1.0
        weight_ranges = (self.a.weight_range, self.b.weight_range)
        unseen = known_rows(self.reward_range, weight_ranges, (-1, 1), tally)
        span = self.reward_range[1] - self.reward_range[0]
        return Linear(tally.moments.transform(change), unseen, (-span, span))

    def _count(self, batch: PairedBatch) -> Tally:
        self.a.check(batch.a)
        self.b.check(batch.b)
        # The prediction at the logged action is the same for both policies.
        offset_a, prediction = self.a.terms(batch.a)
        offset_b, _ = self.b.terms(batch.b)
        weight_a, weight_b = batch.a.weight, batch.b.weight
        offset = offset_b - offset_a
        return Tally.of(
            columns=self.columns(batch),
            tracked=(batch.a.keep_weight, prediction, offset, weight_a, weight_b),
            nonzero=batch.a.reward * (weight_a + weight_b),
        )

    def _weight_columns(self) -> tuple[tuple[int, int], ...]:
        assert self.tally_ is not None
        of_b = (len(self.tally_.moments.mean) + 1) // 2 - 1
        return ((_WEIGHT, _FIRST_WEIGHT), (of_b + _WEIGHT, _FIRST_WEIGHT + 1))

    def doubts_of_its_own(self) -> tuple[Doubt, ...]:
        """Those of the estimator."""
        return self.b.doubts_of_its_own()
