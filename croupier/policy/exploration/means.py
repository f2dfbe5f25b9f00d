"""Explorations that look at the mean rewards alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from croupier.policy.exploration.base import (
    ExplorationBase,
    FloatArray,
    Round,
    require,
    share_of_best,
)

if TYPE_CHECKING:
    from croupier.policy.estimates import Estimates

__all__ = ("EpsilonGreedy", "Greedy", "Softmax", "Uniform")

_NOTHING_ELSE = (
    "only the best action is ever played: no other policy can be learned or evaluated from its "
    "log; give it a floor, or keep it for canaries"
)


class Uniform(ExplorationBase, frozen=True, tag="uniform"):
    """Every eligible action alike: ``p(a) = 1 / K``."""

    needs_scores: ClassVar[bool] = False

    def _explore(self, estimates: Estimates, round_: Round) -> FloatArray:  # noqa: ARG002
        return np.full(estimates.mean.size, 1.0 / estimates.mean.size)


class Greedy(ExplorationBase, frozen=True, tag="greedy"):
    """The best action, ties shared evenly.

    For canaries, which get a small share of the traffic beside an exploring champion. Without a
    floor the other actions are never seen again: no later policy can be learned or evaluated from
    such a log.
    """

    def _explore(self, estimates: Estimates, round_: Round) -> FloatArray:  # noqa: ARG002
        return share_of_best(estimates.mean)

    @property
    def caution(self) -> str | None:
        """Without a floor: that nothing can be learned or evaluated from its log."""
        return None if self.floor > 0.0 else _NOTHING_ELSE


class EpsilonGreedy(ExplorationBase, frozen=True, tag="epsilon_greedy"):
    """The best action, but with probability ε any: ``p(a) = ε/K + (1-ε) [a is best] / #best``.

    Attributes
    ----------
    epsilon
        Share of uniform traffic, in [0, 1].
    """

    epsilon: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        require("epsilon", self.epsilon, low=0.0, high=1.0)

    def _explore(self, estimates: Estimates, round_: Round) -> FloatArray:  # noqa: ARG002
        best = share_of_best(estimates.mean)
        return self.epsilon / best.size + (1.0 - self.epsilon) * best

    @property
    def caution(self) -> str | None:
        """With ε = 0 and without a floor: that nothing can be learned from its log."""
        return None if self.epsilon > 0.0 or self.floor > 0.0 else _NOTHING_ELSE


class Softmax(ExplorationBase, frozen=True, tag="softmax"):
    """Boltzmann exploration: ``p(a) ∝ exp(f(a) / τ)``.

    Attributes
    ----------
    temperature
        τ > 0, in units of reward: a gap of τ makes an action e times likelier.
    """

    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require("temperature", self.temperature, low=0.0, low_open=True)

    def _explore(self, estimates: Estimates, round_: Round) -> FloatArray:  # noqa: ARG002
        # Scores may be so far apart that a gap overflows; its exponential is 0 all the same.
        scores = estimates.mean
        with np.errstate(over="ignore"):
            odds = np.exp((scores - scores.max()) / self.temperature)
        return np.asarray(odds / odds.sum())
