"""Explorations by the votes of an ensemble, counted exactly."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from croupier.policy.exploration.base import (
    ExplorationBase,
    FloatArray,
    Round,
    apply_floor,
    require,
    share_of_best,
)

if TYPE_CHECKING:
    from croupier.policy.estimates import Estimates, Uncertainty

__all__ = ("Bagging", "Cover", "cover_floor")

_NEEDS: Uncertainty = frozenset({"members"})


class Bagging(ExplorationBase, frozen=True, tag="bagging"):
    """Bootstrapped Thompson sampling: ``p(a) = #{members whose best action is a} / B``.

    A member drawn at random decides; its probability is a count, not an estimate. A member that
    ties between actions gives each of them an even part of its vote.

    References
    ----------
    Agarwal et al., "Taming the Monster", 2014, section 5 (bagging); Eckles and Kaptein, "Thompson
    Sampling with the Online Bootstrap", 2014.
    """

    @property
    def needs(self) -> Uncertainty:
        """Every member's own estimates."""
        return _NEEDS

    @property
    def caution(self) -> str | None:
        """Without a floor: that actions without a vote are missing from its log."""
        return None if self.floor > 0.0 else _NO_VOTE

    def _explore(self, estimates: Estimates, round_: Round) -> FloatArray:  # noqa: ARG002
        return _votes(estimates)


class Cover(ExplorationBase, frozen=True, tag="cover"):
    """Online cover: the votes of policies that were trained to differ, above a floor that falls.

    The members come from an oracle of kind ``cover``, each of which was trained to like what those
    before it leave out. The floor is ``min(1/K, 1/sqrt(K n))`` with n interactions behind the
    oracle, or ``epsilon / K``; as everywhere it is kept by projection unless `floor_method` says
    otherwise, and `floor`, where it is higher, holds as well.

    Attributes
    ----------
    epsilon
        Fixed share of uniform traffic in [0, 1]; None lets it fall with the data.

    References
    ----------
    Agarwal et al., "Taming the Monster", 2014, Algorithm 3 (online cover); the floors are those of
    Vowpal Wabbit.
    """

    epsilon: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon is not None:
            require("epsilon", self.epsilon, low=0.0, high=1.0)

    @property
    def needs(self) -> Uncertainty:
        """Every member's own estimates."""
        return _NEEDS

    @property
    def caution(self) -> str | None:
        """With ε = 0 and without a floor: that actions without a vote are missing from its log."""
        return _NO_VOTE if self.epsilon == 0.0 and self.floor == 0.0 else None

    def _explore(self, estimates: Estimates, round_: Round) -> FloatArray:
        floor = cover_floor(estimates.mean.size, round_.training_rows, self.epsilon)
        return apply_floor(_votes(estimates), floor, self.floor_method)


def cover_floor(actions: int, training_rows: int, epsilon: float | None = None) -> float:
    """Smallest probability of an action under :class:`Cover`, which its training reckons with too.

    ``epsilon / K``, or without one ``min(1/K, 1/sqrt(K n))``.

    Parameters
    ----------
    actions
        K, how many are eligible.
    training_rows
        n, the interactions behind the oracle.
    epsilon
        Fixed share of uniform traffic in [0, 1], or None.
    """
    if epsilon is not None:
        return epsilon / actions
    return min(1.0 / actions, 1.0 / math.sqrt(max(training_rows, 1) * actions))


_NO_VOTE = (
    "an action without a vote is never played: policies that play it can't be evaluated from its "
    "log; give it a floor"
)


def _votes(estimates: Estimates) -> FloatArray:
    assert estimates.members is not None, "needs says so"
    return np.asarray(share_of_best(estimates.members).mean(axis=0))
