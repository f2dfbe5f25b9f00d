"""Doubly robust with as much of the reward model and of the weights' mean as the log asks for.

IPS, SNIPS, DR and SNDR differ, to first order, in what they take off ``w r``: nothing, a multiple
of ``w - 1``, of ``w q_a - q_pi``, or of both, all of which have mean 0. Which is best depends on
the log, and the log tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from croupier.offline.ope.estimators import Estimator, model_terms

if TYPE_CHECKING:
    from croupier.offline.ope.batches import LoggedBatch
    from croupier.offline.ope.intervals import FloatArray, IntervalMethod

__all__ = ("AdjustedDR",)

# Columns after (c, c w, c payoff): the second control, and products of controls and payoff.
_KEEP, _WEIGHT, _PAYOFF, _MODEL, _PRODUCTS = 0, 1, 2, 3, 4

# What is below this share of the whole is rounding.
_CONSTANT = 1e-12

# The controls' means are n (1 / share - 1), Hotelling's statistic, away from 0: at a share of a
# half too far by any luck, and what is left of the rows is extrapolated from.
_LEAST = 0.5


class AdjustedDR(Estimator):
    """DR less the multiples of two controls that leave the least variance.

    With payoff ``u = q_pi + w (r - q_a)`` and controls ``g = (w - 1, w q_a - q_pi)``, whose mean is
    0 whatever the model::

        value = sum c (u - b' g) / sum c,   b = (sum c^2 g g')^-1 sum c^2 g (u - value)

    which is linear in the value; b = 0 where the controls' means are too far from 0 for the rows
    to be told from them, as when only a few were logged. To first order its variance is at most
    that of IPS (b = (0, -1)), SNIPS, DR (b = 0) and SNDR, whatever the reward model, and a model
    that is multiplied by a number, or that a number is added to, gives the same value. The
    coefficients are estimated too, which biases it by O(1/n), as SNIPS is.

    Source: Kallus & Uehara, "Intrinsically Efficient, Stable, and Bounded Off-Policy Evaluation
    for Reinforcement Learning", NeurIPS 2019 (REG, for one step; here with the weights' mean as a
    second control); control variates as in Owen, "Monte Carlo theory, methods and examples", 2013,
    chapter 8. Keep weights are own work: c times what is summed is a row's influence.
    """

    kind: ClassVar[str] = "adjusted-dr"
    intervals: ClassVar[tuple[IntervalMethod, ...]] = ("empirical-likelihood", "delta")

    def terms(self, batch: LoggedBatch) -> tuple[FloatArray, FloatArray]:
        """Per row, the offset and the prediction that is taken off the reward; both (n,)."""
        return model_terms(batch, self.kind)

    def columns(self, batch: LoggedBatch) -> FloatArray:
        """Per row, (c, c w, c payoff), the model's control, and what the coefficients are made of.

        These are, times c^2, the controls' three products with one another, their two with the
        payoff, and the two controls themselves.
        """
        offset, prediction = self.terms(batch)
        keep, weight = batch.keep_weight, batch.weight
        payoff = offset + weight * (batch.reward - prediction)
        ones, model = weight - 1.0, weight * prediction - offset
        squares = (ones * ones, ones * model, model * model)
        products = (*squares, ones * payoff, model * payoff, ones, model)
        return np.column_stack(
            (
                *(keep * each for each in (np.ones(len(batch)), weight, payoff, model)),
                *(keep * keep * each for each in products),
            )
        )

    def point(self, mean: FloatArray) -> tuple[float, FloatArray]:
        """The value as a function of the columns' means, and its gradient there.

        The gradient holds the coefficients fixed: they multiply controls of mean 0, so that their
        own error is of second order.
        """
        first, both, second, of_first, of_second, ones, model = mean[_PRODUCTS:]
        products = np.array([[first, both], [both, second]])
        controls = np.array([mean[_WEIGHT] - mean[_KEEP], mean[_MODEL]])
        of_payoff, of_one = np.array([of_first, of_second]), np.array([ones, model])
        floor = (_CONSTANT * float(mean[_KEEP])) ** 2
        solved = _solved(products, controls, floor)
        share = float(mean[_KEEP] - solved @ of_one)
        if share >= _LEAST * float(mean[_KEEP]):
            value = float((mean[_PAYOFF] - solved @ of_payoff) / share)
            coefficients = _solved(products, of_payoff - value * of_one, floor)
        else:
            value = float(mean[_PAYOFF] / mean[_KEEP])
            coefficients = np.zeros(2)
        combined = np.zeros(len(mean))
        combined[[_KEEP, _WEIGHT, _PAYOFF, _MODEL]] = (
            coefficients[0],
            -coefficients[0],
            1.0,
            -coefficients[1],
        )
        gradient = combined / mean[_KEEP]
        gradient[_KEEP] -= value / mean[_KEEP]
        return value, gradient


def _solved(products: FloatArray, right: FloatArray, floor: float) -> FloatArray:
    """Coefficients of the controls: of several the shortest, and 0 of what is but rounding."""
    squares = np.diag(products)
    scale = np.where(squares > floor, 1.0 / np.sqrt(np.maximum(squares, floor)), 0.0)
    inverse = np.linalg.pinv(products * np.outer(scale, scale), rcond=_CONSTANT, hermitian=True)
    return np.asarray(scale * (inverse @ (scale * right)))
