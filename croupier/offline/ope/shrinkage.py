"""Estimators with weights made smaller: less variance for some bias.

All are doubly robust with another weight, ``sum c (q_pi + f(w) (r - q_a)) / sum c``, or the same
without a reward model, and differ in f. What they tend to is not the policy's value: they are off
by the bias ``-E[(w - f(w)) (r - q_a)]``, which goes with the parameter. Choose the parameter from
the data (:mod:`~croupier.offline.ope.tuning`): a bad one costs more than a bad estimator.

Their intervals, since an interval for a biased estimator is easily one for nothing:

- ``empirical-likelihood``, the default: that of the policy's value, from the whole weights,
  extended to the estimate.
- ``outer``: a large-sample interval for the value that pays for the bias. With residuals in
  ``[l, h]`` and ``d = max(f(w) - w, 0)``, since ``E[w] = 1``::

      E[o + f res + l (1 - f) - (h - l) d] <= value <= E[o + f res + h (1 - f) + (h - l) d]

  Both ends take the normal interval of their own mean. It needs no largest weight. Source:
  Bottou et al., "Counterfactual Reasoning and Learning Systems", JMLR 2013 (inner and
  outer confidence intervals).
- ``normal``: that of what the estimator tends to; the estimate has the doubt
  ``own-expectation``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from croupier.offline.ope.estimators import Estimator, known_rows, model_terms, ratio
from croupier.offline.ope.intervals import FloatArray, IntervalMethod, normal_interval
from croupier.policy.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from croupier.offline.ope.accumulators import Doubt, Tally
    from croupier.offline.ope.batches import LoggedBatch

__all__ = (
    "DM",
    "ClippedDR",
    "ClippedIPS",
    "DRos",
    "Reweighed",
    "ShrunkIPS",
    "SubgaussianDR",
    "SubgaussianIPS",
    "SwitchDR",
)

# Columns after (c, c w, c payoff): the estimator's own payoff, f(w), and by how much f(w) > w.
_KEEP, _OWN, _SHRUNK, _EXCESS = 0, 3, 4, 5


class Reweighed(Estimator):
    """Base of the estimators of this module.

    Parameters
    ----------
    parameter
        Of f; what it is and its range, each class says.
    interval, reward_range, weight_range
        As for :class:`~croupier.offline.ope.estimators.Estimator`; `weight_range` is that of the
        whole weights.

    Raises
    ------
    InvalidInputError
        If a parameter is out of its range; it names the parameter.
    """

    intervals: ClassVar[tuple[IntervalMethod, ...]] = ("empirical-likelihood", "outer", "normal")
    allowed: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def __init__(
        self,
        parameter: float,
        *,
        interval: IntervalMethod = "empirical-likelihood",
        reward_range: tuple[float, float] = (0.0, 1.0),
        weight_range: tuple[float, float] = (0.0, math.inf),
    ) -> None:
        super().__init__(interval=interval, reward_range=reward_range, weight_range=weight_range)
        if not self.allowed[0] <= parameter <= self.allowed[1]:
            raise InvalidInputError(
                "parameter", f"expected a number in {self.allowed} for {self.kind}, got {parameter}"
            )
        self.parameter = parameter

    @property
    def name(self) -> str:
        """Goes into :class:`~croupier.offline.ope.Estimate`; says the parameter."""
        return f"{self.kind}({self.parameter:g})"

    def parameters(self) -> tuple[object, ...]:
        """The constructor's parameters; only estimators with equal ones can be merged."""
        return (self.parameter, *super().parameters())

    def fresh(self, parameter: float | None = None) -> Self:
        """An estimator like this one that has counted nothing, with another parameter if given.

        Raises
        ------
        InvalidInputError
            If the parameter is out of its range.
        """
        return type(self)(
            self.parameter if parameter is None else parameter,
            interval=self.interval,
            reward_range=self.reward_range,
            weight_range=self.weight_range,
        )

    def grid(self, largest: float, number: int) -> list[float]:
        """`number` parameters to choose from, for weights up to `largest`, a number above 1."""
        return [0.0, *_log_grid(1.0, largest, number - 1)]

    def own_interval(self, tally: Tally, confidence: float) -> tuple[float, float]:
        """The normal interval of what the estimator tends to."""
        return super().large_sample(tally, confidence)

    @abstractmethod
    def reweigh(self, weight: FloatArray) -> FloatArray:
        """Per row f(w), at least 0, from w; both (n,)."""

    def further(
        self, weight: FloatArray, offset: FloatArray, residual: FloatArray
    ) -> Sequence[FloatArray]:
        """The estimator's own payoff, f(w), and ``max(f(w) - w, 0)``."""
        shrunk = self.reweigh(weight)
        return (offset + shrunk * residual, shrunk, np.maximum(shrunk - weight, 0.0))

    def point(self, mean: FloatArray) -> tuple[float, FloatArray]:
        """The value as a function of the columns' means, and its gradient there."""
        return ratio(mean, _OWN, _KEEP)

    def large_sample(self, tally: Tally, confidence: float) -> tuple[float, float]:
        """The normal interval, or the outer one."""
        if self.interval != "outer":
            return self.own_interval(tally, confidence)
        low, high = known_rows(self.reward_range, (self.weight_range,), (1,), tally).residual
        change = np.zeros((3, len(tally.moments.mean)))
        change[0, _KEEP] = 1.0
        for row, end, sign in ((1, low, -1.0), (2, high, 1.0)):
            change[row, _OWN], change[row, _KEEP], change[row, _SHRUNK] = 1.0, end, -end
            change[row, _EXCESS] = sign * (high - low)
        moments = tally.moments.transform(change)
        ends: list[float] = []
        for row in (1, 2):
            value, gradient = ratio(moments.mean, row, _KEEP)
            interval = normal_interval(value, moments.standard_error(gradient), confidence)
            ends.append(interval[row - 1])
        return ends[0], ends[1]

    def doubts_of_its_own(self) -> tuple[Doubt, ...]:
        """That normal and bootstrap intervals leave the bias out."""
        return ("own-expectation",)


class _WithModel(Reweighed):
    """With a reward model's predictions."""

    def terms(self, batch: LoggedBatch) -> tuple[FloatArray, FloatArray]:
        """Per row, the offset and the prediction that is taken off the reward; both (n,)."""
        return model_terms(batch, self.kind)


class DM(_WithModel):
    """Direct method: ``sum c q_pi / sum c``, ``f(w) = 0``: all is believed of the reward model.

    Its normal interval leaves out the model's error, which is what it is wrong by; the outer one
    is no narrower than the range of the rewards, which is all that is known without weights.

    Source: Beygelzimer & Langford, "The Offset Tree for Learning with Partial Labels", KDD 2009
    (the regression approach); named by Dudík, Langford & Li, ICML 2011.
    """

    kind: ClassVar[str] = "dm"

    def __init__(
        self,
        *,
        interval: IntervalMethod = "empirical-likelihood",
        reward_range: tuple[float, float] = (0.0, 1.0),
        weight_range: tuple[float, float] = (0.0, math.inf),
    ) -> None:
        super().__init__(
            0.0, interval=interval, reward_range=reward_range, weight_range=weight_range
        )

    @property
    def name(self) -> str:
        """Goes into :class:`~croupier.offline.ope.Estimate`."""
        return self.kind

    def fresh(self, parameter: float | None = None) -> Self:
        """A direct method that has counted nothing; it has no parameter to be given."""
        if parameter is not None:
            raise InvalidInputError("parameter", "expected none for dm")
        return type(self)(
            interval=self.interval, reward_range=self.reward_range, weight_range=self.weight_range
        )

    def reweigh(self, weight: FloatArray) -> FloatArray:
        """``f(w) = 0``."""
        return np.zeros(len(weight))


class ClippedIPS(Reweighed):
    """``f(w) = min(w, parameter)``, with a parameter in [0, inf].

    Source: Ionides, "Truncated Importance Sampling", JCGS 2008; Bottou et al., JMLR 2013.
    """

    kind: ClassVar[str] = "clipped-ips"

    def reweigh(self, weight: FloatArray) -> FloatArray:
        """``f(w) = min(w, parameter)``."""
        return np.minimum(weight, self.parameter)


class ClippedDR(_WithModel, ClippedIPS):
    """Doubly robust with ``f(w) = min(w, parameter)``.

    It is DRps, the pessimistic shrinkage of Su, Dimakopoulou, Krishnamurthy & Dudík, "Doubly
    Robust Off-Policy Evaluation with Shrinkage", ICML 2020, and the doubly robust form of the
    continuous adaptive blending (CAB) of Su et al., ICML 2019.
    """

    kind: ClassVar[str] = "clipped-dr"


class ShrunkIPS(Reweighed):
    """``f(w) = parameter w / (w^2 + parameter)``, with a parameter in [0, inf].

    Weights rise to half the root of the parameter and then fall towards 0.

    Source: DRos without a reward model, see there.
    """

    kind: ClassVar[str] = "shrunk-ips"

    def grid(self, largest: float, number: int) -> list[float]:
        """`number` parameters to choose from, for weights up to `largest`, a number above 1."""
        return [0.0, *_log_grid(1.0, 100.0 * largest**2, number - 1)]

    def reweigh(self, weight: FloatArray) -> FloatArray:
        """``f(w) = parameter w / (w^2 + parameter)``."""
        if self.parameter == 0.0:
            return np.zeros(len(weight))
        return weight / (weight * weight / self.parameter + 1.0)


class DRos(_WithModel, ShrunkIPS):
    """Doubly robust with optimistic shrinkage, ``f(w) = parameter w / (w^2 + parameter)``.

    The parameter is the lambda of the source, in [0, inf]: 0 is the direct method, infinity DR.

    Source: Su, Dimakopoulou, Krishnamurthy & Dudík, "Doubly Robust Off-Policy Evaluation with
    Shrinkage", ICML 2020 (DRos).
    """

    kind: ClassVar[str] = "dros"


class SwitchDR(_WithModel):
    """``f(w) = w`` up to the parameter and 0 above, with a parameter in [0, inf].

    Source: Wang, Agarwal & Dudík, "Optimal and Adaptive Off-policy Evaluation in Contextual
    Bandits", ICML 2017 (SWITCH), with the doubly robust form below the threshold.
    """

    kind: ClassVar[str] = "switch-dr"

    def reweigh(self, weight: FloatArray) -> FloatArray:
        """``f(w) = w`` up to the parameter and 0 above."""
        return np.where(weight <= self.parameter, weight, 0.0)


class SubgaussianIPS(Reweighed):
    """``f(w) = w / (1 - parameter + parameter w)``, with a parameter in [0, 1].

    Weights are bounded by one over the parameter; 0 is IPS, 1 counts every row once. Unlike the
    others it makes weights below 1 larger.

    Source: Metelli, Russo & Restelli, "Subgaussian and Differentiable Importance Sampling for
    Off-Policy Evaluation and Learning", NeurIPS 2021, the power mean of exponent -1.
    """

    kind: ClassVar[str] = "subgaussian-ips"
    allowed: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def grid(self, largest: float, number: int) -> list[float]:
        """`number` parameters to choose from, for weights up to `largest`, a number above 1."""
        return [0.0, *_log_grid(0.01 / largest, 1.0, number - 1)]

    def reweigh(self, weight: FloatArray) -> FloatArray:
        """``f(w) = w / (1 - parameter + parameter w)``."""
        below = 1.0 - self.parameter + self.parameter * weight
        return np.divide(weight, below, out=np.zeros(len(weight)), where=below > 0.0)


class SubgaussianDR(_WithModel, SubgaussianIPS):
    """Doubly robust with ``f(w) = w / (1 - parameter + parameter w)``.

    Source: as for :class:`SubgaussianIPS`.
    """

    kind: ClassVar[str] = "subgaussian-dr"


def _log_grid(low: float, high: float, number: int) -> list[float]:
    return [float(each) for each in np.geomspace(low, high, number)]
