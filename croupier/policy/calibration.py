"""Calibration: what an oracle's score is worth as a reward, as a monotone curve over the scores.

A curve is fitted offline (:mod:`croupier.offline.calibrate`), is saved with the oracle and applied
by it, so that whoever asks the oracle, scorer or evaluation, gets the same calibrated rewards.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np

from croupier.policy.errors import GenerationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = (
    "CalibrationStep",
    "IsotonicCurve",
    "PlattCurve",
    "PriorCorrection",
    "calibrated",
    "require_finite",
)

CERTAIN = 1e-6
"""Probabilities are kept this far from 0 and 1 where their log-odds are taken."""


class PriorCorrection(msgspec.Struct, frozen=True, kw_only=True, tag="prior"):
    """Undoes a weighting of rewards of 1 against those of 0: ``s / (s + ratio · (1 - s))``.

    Where rows with reward 1 counted `ratio` times as much as those with reward 0, an estimate s is
    that of the log in which there are so many more of them; its odds are `ratio` times too large.
    Beyond [0, 1], where an estimate is no probability, the curve goes on straight, so that the
    order of the actions stays.

    Attributes
    ----------
    ratio
        Weight of a row with reward 1 over that of a row with reward 0, positive.

    References
    ----------
    King and Zeng, "Logistic Regression in Rare Events Data", 2001, section 4.1 (prior correction);
    Elkan, "The Foundations of Cost-Sensitive Learning", 2001, theorem 2.
    """

    ratio: float

    def apply(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rewards for scores, elementwise."""
        inside = np.clip(scores, 0.0, 1.0)
        corrected = inside / (inside + self.ratio * (1.0 - inside))
        slope = np.where(scores < 0.0, 1.0 / self.ratio, self.ratio)
        return np.asarray(corrected + slope * (scores - inside))


class IsotonicCurve(msgspec.Struct, frozen=True, kw_only=True, tag="isotonic"):
    """Straight lines between the centres of an isotonic regression's blocks.

    A step function would make ties of scores that differ. Below the first centre and above the
    last there is nothing to go by, and the curve is level.

    Attributes
    ----------
    scores
        Mean score of every block, ascending.
    rewards
        Its mean reward, ascending.

    References
    ----------
    Zadrozny and Elkan, "Transforming Classifier Scores into Accurate Multiclass Probability
    Estimates", 2002; Oron and Flournoy, "Centered Isotonic Regression", 2017.
    """

    scores: list[float]
    rewards: list[float]

    def apply(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rewards for scores, elementwise."""
        return np.asarray(np.interp(scores, self.scores, self.rewards))


class PlattCurve(msgspec.Struct, frozen=True, kw_only=True, tag="platt"):
    """A logistic curve: ``1 / (1 + exp(-(slope · z + intercept)))``.

    Attributes
    ----------
    slope, intercept
        Of z.
    log_odds
        Whether z is the score's log-odds instead of the score: for probabilities, of which the
        identity is then one of the curves.

    References
    ----------
    Platt, "Probabilistic Outputs for Support Vector Machines", 1999.
    """

    slope: float
    intercept: float
    log_odds: bool

    def apply(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rewards for scores, elementwise."""
        linear = self.slope * platt_input(scores, log_odds=self.log_odds) + self.intercept
        # tanh is the logistic function that doesn't overflow.
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * linear)))


CalibrationStep: TypeAlias = PriorCorrection | IsotonicCurve | PlattCurve


def platt_input(scores: NDArray[np.float64], *, log_odds: bool) -> NDArray[np.float64]:
    """What a logistic curve is a curve of."""
    if not log_odds:
        return scores
    inside = np.clip(scores, CERTAIN, 1.0 - CERTAIN)
    return np.asarray(np.log(inside / (1.0 - inside)))


def calibrated(
    steps: Sequence[CalibrationStep], scores: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Scores of any shape after one curve and the next."""
    for step in steps:
        scores = step.apply(scores)
    return scores


def require_finite(steps: Sequence[CalibrationStep]) -> tuple[CalibrationStep, ...]:
    """The curves, if they can be applied to any finite score.

    Raises
    ------
    GenerationError
        If they can't.
    """
    for step in steps:
        if isinstance(step, IsotonicCurve):
            numbers = [*step.scores, *step.rewards]
            ascending = all(low < high for low, high in pairwise(step.scores))
            fine = bool(step.scores) and len(step.scores) == len(step.rewards) and ascending
        elif isinstance(step, PlattCurve):
            numbers, fine = [step.slope, step.intercept], True
        else:
            numbers, fine = [step.ratio], step.ratio > 0.0
        if not fine or not np.isfinite(numbers).all():
            raise GenerationError(f"the oracle has a calibration that can't be applied: {step!r}")
    return tuple(steps)
