"""Inverse gap weighting: probabilities that fall with the distance from the best action."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from croupier.policy.exploration.base import (
    LARGEST,
    ExplorationBase,
    FloatArray,
    Round,
    require,
    require_range,
)
from croupier.policy.exploration.intervals import half_widths, radius_of
from croupier.policy.kernel import KERNEL

if TYPE_CHECKING:
    from croupier.policy.estimates import Estimates, Uncertainty

__all__ = ("Falcon", "FastCB", "SquareCB")


class SquareCB(ExplorationBase, frozen=True, tag="squarecb"):
    """Inverse gap weighting: ``p(a) = 1 / (K + γ (f(b) - f(a)))`` for a ≠ b, and b has the rest.

    Here b is the best action and ``γ = gamma_scale · n^gamma_exponent`` with n the interactions
    behind the oracle. Actions that tie for the best share what is left evenly: the mean over all
    ways to name one of them b.

    With `optimism` the weights are those of the upper ends ``f(a) + sqrt(Δ) · deviation(a)`` of the
    intervals that :class:`~croupier.policy.exploration.RegCB` has under that `mellowness`: what is
    badly known is played more, what is known to be worse hardly any more, and still every action
    keeps a probability. A large γ then is the optimistic RegCB. Before there is any data nothing is
    known, and all actions are alike. An oracle that doesn't tell its deviations, or is calibrated,
    is not asked for more than the estimates: then it is inverse gap weighting as without.

    Attributes
    ----------
    gamma_scale
        ≥ 0; 0 is uniform, large is greedy.
    gamma_exponent
        In [0, 1]; 0 keeps γ fixed at `gamma_scale`.
    optimism
        ≥ 0; how much worse than the best a function may fit that an upper end is still taken from;
        0 looks at the estimates alone.
    reward_min, reward_max
        Range of the reward, which `optimism` reckons with.

    References
    ----------
    Foster and Rakhlin, "Beyond UCB: Optimal and Efficient Contextual Bandits with Regression
    Oracles", 2020, Algorithm 1. Defaults of scale and exponent are Vowpal Wabbit's. Upper ends in
    the place of estimates are ours.
    """

    gamma_scale: float = 10.0
    gamma_exponent: float = 0.5
    optimism: float = 0.0
    reward_min: float = 0.0
    reward_max: float = 1.0

    later: ClassVar[tuple[str, ...]] = ("optimism", "reward_min", "reward_max")

    def __post_init__(self) -> None:
        super().__post_init__()
        require("gamma_scale", self.gamma_scale, low=0.0)
        require("gamma_exponent", self.gamma_exponent, low=0.0, high=1.0)
        require("optimism", self.optimism, low=0.0)
        require_range(self.reward_min, self.reward_max)

    @property
    def wants(self) -> Uncertainty:
        """The standard error of every estimate, where there is optimism."""
        return frozenset({"deviation"}) if self.optimism > 0.0 else frozenset()

    def gamma(self, training_rows: int) -> float:
        """Greediness γ after `training_rows` interactions."""
        return min(float(self.gamma_scale * training_rows**self.gamma_exponent), LARGEST)

    def greediness(self, training_rows: int, actions: int) -> float | None:  # noqa: ARG002
        """γ unless there is a floor, see :class:`ExplorationBase`."""
        return None if self.floor > 0.0 else self.gamma(training_rows)

    def _explore(self, estimates: Estimates, round_: Round) -> FloatArray:
        rows, scores = round_.training_rows, estimates.mean
        if self.optimism > 0.0 and estimates.deviation is not None:
            if rows == 0:
                return np.full(scores.size, 1.0 / scores.size)
            scores = self._upper_ends(scores, estimates.deviation, rows)
        return _inverse_gap_weights(scores, self.gamma(rows))

    def _upper_ends(self, mean: FloatArray, deviation: FloatArray, rows: int) -> FloatArray:
        radius = radius_of(self.optimism, self.reward_max - self.reward_min, rows, mean.size)
        with np.errstate(over="ignore"):
            return np.asarray(np.minimum(mean + half_widths(radius, deviation), LARGEST))


class Falcon(ExplorationBase, frozen=True, tag="falcon"):
    """Inverse gap weighting with the epoch's ``γ = scale · sqrt(K n / log(F n / δ))``.

    Here n is the number of interactions behind the oracle and K that of the eligible actions. This,
    not the schedule of an online learner, is the one that the theory gives for retraining in
    batches: γ is fixed within a generation and grows with the data of the one before. Before
    there is any data γ is 0, which is uniform.

    Attributes
    ----------
    scale
        > 0; the paper proves its bound for 1/30, practice wants more.
    log_class_size
        ``log F`` ≥ 0: of how many regression functions the oracle chooses one.
    delta
        Probability, in (0, 1), with which the bound may fail.

    References
    ----------
    Simchi-Levi and Xu, "Bypassing the Monster: A Faster and Simpler Optimal Algorithm for
    Contextual Bandits under Realizability", 2020, Algorithm 1.
    """

    scale: float = 1.0
    log_class_size: float = 0.0
    delta: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        require("scale", self.scale, low=0.0, low_open=True)
        require("log_class_size", self.log_class_size, low=0.0)
        if not 0.0 < self.delta < 1.0:
            raise ValueError(f"delta must be in (0, 1), got {self.delta!r}")

    def gamma(self, training_rows: int, actions: int) -> float:
        """Greediness γ after `training_rows` interactions, for so many eligible actions."""
        if training_rows == 0:
            return 0.0
        confidence = self.log_class_size + math.log(training_rows / self.delta)
        return min(self.scale * math.sqrt(actions * training_rows / confidence), LARGEST)

    def greediness(self, training_rows: int, actions: int) -> float | None:
        """γ unless there is a floor, see :class:`ExplorationBase`."""
        return None if self.floor > 0.0 else self.gamma(training_rows, actions)

    def _explore(self, estimates: Estimates, round_: Round) -> FloatArray:
        scores = estimates.mean
        return _inverse_gap_weights(scores, self.gamma(round_.training_rows, scores.size))


class FastCB(ExplorationBase, frozen=True, tag="fastcb"):
    """Exploration in proportion to the best action's loss.

    ``p(a) = l(b) / (K l(b) + γ (l(a) - l(b)))`` for a ≠ b, and b has the rest, with the loss
    ``l(a) = (reward_max - f(a)) / (reward_max - reward_min)`` and b the action of least loss. Where
    failures are rare it explores little, in return for a regret that shrinks with them. Scores
    beyond the range count as its ends. Actions that tie for the best share evenly.

    Attributes
    ----------
    gamma
        Greediness > 0; None takes ``10 K``, the smallest that the paper's bound allows.
    loss_floor
        In (0, 1]: the best action's loss counts as at least this, since exploration would vanish
        with it, and with exploration all later learning.
    reward_min, reward_max
        Range of the reward.

    References
    ----------
    Foster and Krishnamurthy, "Efficient First-Order Contextual Bandits: Prediction, Allocation, and
    Triangular Discrimination", 2021, Algorithm 1. The floor on the loss is ours.
    """

    gamma: float | None = None
    loss_floor: float = 0.01
    reward_min: float = 0.0
    reward_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma is not None:
            require("gamma", self.gamma, low=0.0, low_open=True)
        require("loss_floor", self.loss_floor, low=0.0, high=1.0, low_open=True)
        require_range(self.reward_min, self.reward_max)

    def _explore(self, estimates: Estimates, round_: Round) -> FloatArray:  # noqa: ARG002
        reward = np.clip(estimates.mean, self.reward_min, self.reward_max)
        losses = (self.reward_max - reward) / (self.reward_max - self.reward_min)
        least = max(float(losses.min()), self.loss_floor)
        gamma = 10.0 * losses.size if self.gamma is None else self.gamma
        return _inverse_gap_weights(-losses, min(gamma / least, LARGEST))


def _inverse_gap_weights(scores: FloatArray, gamma: float) -> FloatArray:
    """``1 / (K + gamma * gap)`` for all but the best, which share the rest evenly."""
    # An overflow means a probability of 0; only 0 * inf would be wrong, so gaps stay finite.
    if KERNEL is not None and scores.dtype == np.float64 and scores.flags.c_contiguous:
        return KERNEL.gap_weights(scores, gamma)
    with np.errstate(over="ignore"):
        gaps = np.minimum(scores.max() - scores, LARGEST)
        pmf = 1.0 / (scores.size + gamma * gaps)
    best = gaps == 0.0
    pmf[best] = (1.0 - pmf[~best].sum()) / np.count_nonzero(best)
    return np.asarray(pmf)
