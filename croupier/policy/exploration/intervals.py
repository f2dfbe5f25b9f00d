"""RegCB: exploration by confidence intervals of the reward."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from croupier.policy.exploration.base import (
    LARGEST,
    ExplorationBase,
    FloatArray,
    Round,
    require,
    require_range,
    share_of_best,
)

if TYPE_CHECKING:
    from croupier.policy.estimates import Estimates, Uncertainty

__all__ = ("RegCB", "half_widths", "optimists", "radius_of", "survivors")


class RegCB(ExplorationBase, frozen=True, tag="regcb"):
    """Uniform over the actions that may still be best, or the one that may be best of all.

    The interval of an action's reward holds what every regression function gives whose squared
    error on the log is within ``Δ = mellowness · ln(K n) · (reward_max - reward_min)²`` of the best
    one's, n being the interactions behind the oracle. For a linear model by ridge regression that
    set is an ellipsoid and the interval ``f(a) ± sqrt(Δ) · deviation(a)``, exactly; it is then
    clipped to the range of the reward. ``elimination`` plays uniformly among the actions whose
    upper end reaches the highest lower end; ``optimistic`` plays the one with the highest upper
    end. Upper ends that are clipped alike are told apart by what they were before, as LinUCB does
    (Li et al., 2010, Algorithm 1): with many features nearly all are, for some hundreds of rows.
    Other ties are shared. Before there is any data nothing is known, and both play uniformly.

    Vowpal Wabbit searches for the interval by reweighting an imagined example to first order, and
    takes ``ln(K n)`` at n = 0 for a width of minus infinity, so that it starts greedily.

    Attributes
    ----------
    variant
        ``elimination`` or ``optimistic``.
    mellowness
        ≥ 0; how much worse than the best a function may fit. Vowpal Wabbit's default of 0.1 suits
        its narrower intervals; exact ones learn faster with less (see
        ``benchmarks.learning_quality``).
    reward_min, reward_max
        Range of the reward.

    References
    ----------
    Foster, Agarwal, Dudík, Luo and Schapire, "Practical Contextual Bandits with Regression
    Oracles", 2018, Algorithms 1 and 2; the default is in the grid of Bietti, Agarwal and Langford,
    "A Contextual Bandit Bake-off", 2021.
    """

    variant: Literal["elimination", "optimistic"] = "elimination"
    mellowness: float = 0.01
    reward_min: float = 0.0
    reward_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("mellowness", self.mellowness, low=0.0)
        require_range(self.reward_min, self.reward_max)

    @property
    def needs(self) -> Uncertainty:
        """The standard error of every estimate."""
        return frozenset({"deviation"})

    @property
    def caution(self) -> str | None:
        """Without a floor: that whole actions are missing from its log."""
        if self.floor > 0.0:
            return None
        return (
            "actions that it rules out are never played: policies that play them can't be "
            "evaluated from its log; give it a floor"
        )

    def radius(self, training_rows: int, actions: int) -> float:
        """Half an interval's width over the deviation, ``sqrt(Δ)``."""
        return radius_of(self.mellowness, self.reward_max - self.reward_min, training_rows, actions)

    def _explore(self, estimates: Estimates, round_: Round) -> FloatArray:
        actions = estimates.mean.size
        if round_.training_rows == 0:
            return np.full(actions, 1.0 / actions)
        assert estimates.deviation is not None, "needs says so"
        half = half_widths(self.radius(round_.training_rows, actions), estimates.deviation)
        with np.errstate(over="ignore"):
            lower, upper = estimates.mean - half, estimates.mean + half
        if self.variant == "optimistic":
            return optimists(upper)
        return survivors(
            *(np.clip(end, self.reward_min, self.reward_max) for end in (lower, upper))
        )


def radius_of(mellowness: float, spread: float, training_rows: int, actions: int) -> float:
    """``sqrt(Δ)`` with ``Δ = mellowness · ln(K n) · spread²``, see :class:`RegCB`.

    Parameters
    ----------
    mellowness
        ≥ 0; how much worse than the best a regression function may fit.
    spread
        Of the reward, between its least and its largest.
    training_rows, actions
        n and K; 0 before there are rows.
    """
    rows = max(actions * training_rows, 1)
    return min(spread * math.sqrt(mellowness * math.log(rows)), LARGEST)


def half_widths(radius: float, deviation: FloatArray) -> FloatArray:
    """From the estimates to the ends of their intervals, shape (K,); finite."""
    with np.errstate(over="ignore"):
        return np.asarray(np.minimum(radius * deviation, LARGEST))


def survivors(lower: FloatArray, upper: FloatArray) -> FloatArray:
    """Uniform over the actions whose interval reaches the highest lower end, shape (K,)."""
    alive = upper >= lower.max()
    return np.asarray(alive / np.count_nonzero(alive), dtype=np.float64)


def optimists(upper: FloatArray) -> FloatArray:
    """All of the probability to the highest upper end, ties shared, shape (K,)."""
    return share_of_best(upper)
