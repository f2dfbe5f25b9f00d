"""Context-Semi-Bandit-FTPL: follow the perturbed leader, with an oracle in the place of a class."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from croupier.policy.fairness.exp2 import OpenDoor
from croupier.policy.fairness.lagrangian import Penalty
from croupier.policy.fairness.protocol import Play
from croupier.policy.fairness.semi_bandit import estimated_losses

if TYPE_CHECKING:
    from croupier.policy.fairness.cost_oracles import CostOracle
    from croupier.policy.fairness.hypotheses import Hypotheses
    from croupier.policy.fairness.protocol import Feedback

__all__ = ("ContextSemiBanditFTPL", "geometric_bias", "geometric_counts", "mixture_deviation")

FloatArray: TypeAlias = NDArray[np.float64]


class ContextSemiBanditFTPL:
    """Individually fair learning with an oracle for a class that may be endless.

    The oracle's R leaders, under as many perturbations, are the policy: one of them, at random,
    decides, and their mixture is what the panel audits, so that the audit is exact for what is
    played. (It stands for the mixture over all perturbations, from which it differs by
    :func:`mixture_deviation`.) Up to M leaders are drawn from them again to say how rarely an
    instance is approved, by geometric resampling. Bechavod and Roth, 2022, section 5; after
    Syrgkanis, Krishnamurthy and Schapire, 2016, and Neu and Bartók, 2013.

    Parameters
    ----------
    oracle
        Of the leaders.
    penalty
        Price of a reported pair.
    door
        Share of rounds in which everybody is approved. Without any, what is never approved would
        count as costing nothing, since no more than M leaders are drawn.
    most
        M ≥ 1.

    Attributes
    ----------
    round
        How many were learned from.
    mixture
        The leaders of the latest play; None before there was one.
    """

    def __init__(
        self,
        oracle: CostOracle,
        *,
        penalty: Penalty | None = None,
        door: OpenDoor | None = None,
        most: int = 100,
    ) -> None:
        self._oracle = oracle
        self._penalty = Penalty() if penalty is None else penalty
        self._door = OpenDoor(exponent=1.0 / 3.0) if door is None else door
        self._most = most
        self.round = 0
        self.mixture: Hypotheses | None = None

    def act(self, contexts: FloatArray, rng: np.random.Generator) -> Play:
        """Draw leaders; the first of them decides."""
        everybody = self._door.at(self.round + 1)
        self.mixture = self._oracle.leaders(rng)
        decisions = self.mixture.decide(contexts) > 0.5
        again = rng.integers(len(decisions), size=1 + self._most)
        opened = rng.random(1 + self._most) < everybody
        drawn = decisions[again] | opened[:, None]
        inside = decisions.mean(axis=0, dtype=np.float64)
        return Play(
            contexts, everybody + (1.0 - everybody) * inside, drawn[0], geometric_counts(drawn[1:])
        )

    def learn(self, play: Play, feedback: Feedback) -> None:
        """Hand the estimated losses of the latest play to the oracle."""
        price = self._penalty.at(self.round + 1, play.chances.size)
        losses = estimated_losses(play, feedback, price)
        self._oracle.add(play.contexts[losses.places], losses.differences)
        self.round += 1


def geometric_counts(approves: NDArray[np.bool_]) -> FloatArray:
    """J: how many leaders had to be drawn until one approved, at most M.

    ``E[J] = (1 - (1 - q)^M) / q``, so that a loss counted J times where it was seen is short by
    ``loss · (1 - q)^M`` in expectation, see :func:`geometric_bias`. All instances share the draws:
    each J is distributed as if it had its own.

    Parameters
    ----------
    approves
        What M leaders decide, in the order in which they were drawn, shape (M, k).

    Returns
    -------
    counts
        In [1, M], shape (k,).
    """
    never = ~approves.any(axis=0)
    return np.where(never, len(approves), 1.0 + approves.argmax(axis=0))


def geometric_bias(chance: float, most: int) -> float:
    """How much of a loss is missing in expectation: ``(1 - q)^M``, at most ``1 / (e M q)``.

    Since ``(1 - q)^M ≤ e^{-qM}`` and ``x e^{-x} ≤ 1/e`` of ``x = qM``.

    Parameters
    ----------
    chance
        q in (0, 1].
    most
        M ≥ 1.
    """
    return float((1.0 - chance) ** most)


def mixture_deviation(leaders: int, chances: int, confidence: float = 0.95) -> float:
    """δ: how far a mixture of R independent leaders is from π, in any of n chances.

    ``√(ln(2 n / (1 - confidence)) / (2 R))``, by Hoeffding's inequality and a union bound. Who is
    α-fair as a mixture is ``α + 2δ``-fair as π, with that confidence.

    Parameters
    ----------
    leaders, chances
        R and n, at least 1.
    confidence
        In (0, 1).
    """
    return math.sqrt(math.log(2.0 * chances / (1.0 - confidence)) / (2.0 * leaders))
