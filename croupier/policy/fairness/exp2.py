"""Exp2 over an explicit class: exponential weights on estimated losses of whole hypotheses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from croupier.policy.fairness.lagrangian import Penalty
from croupier.policy.fairness.protocol import Play
from croupier.policy.fairness.semi_bandit import estimated_losses

if TYPE_CHECKING:
    from croupier.policy.fairness.hypotheses import Hypotheses
    from croupier.policy.fairness.protocol import Feedback
    from croupier.policy.fairness.semi_bandit import SemiBanditLosses

__all__ = ("Exp2", "ExponentialWeights", "OpenDoor", "fixed_rate")

FloatArray: TypeAlias = NDArray[np.float64]


class OpenDoor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Share of rounds in which everybody is approved: ``μ_t = min(most, t^-exponent)``.

    Only who is approved is learned from, and ``1 / q ≤ 1 / μ_t``. A constant decision is as fair as
    can be, and costs ``k Σ μ_t``.

    Attributes
    ----------
    most
        In [0, 1]; 0 for none.
    exponent
        In [0, 1].
    """

    most: float = 0.5
    exponent: float = 0.5

    def __post_init__(self) -> None:
        for name in ("most", "exponent"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    def at(self, round_: int) -> float:
        """μ_t, of round t ≥ 1."""
        return float(min(self.most, round_**-self.exponent))


class ExponentialWeights:
    """``π_t(h) ∝ exp(-η_t Σ_{s<t} L_s(h))`` over H hypotheses.

    With a rate of None, η is AdaHedge's, ``η_t = ln H / Δ_{t-1}``, where Δ sums up how much the
    losses under π were above their mix losses ``-1/η ln Σ π(h) exp(-η L(h))``. It needs neither the
    horizon nor the range of the losses, and its regret is at most ``2 Δ_T`` on every sequence (its
    mix losses sum to at most ``min_h Σ L(h) + ln H / η_T``), which is at most
    ``2 √(V_T ln H) + S_T (4/3 ln H + 2)`` with V the sum of the losses' variances under π and S
    their largest range (de Rooij, van Erven, Grünwald and Koolen, "Follow the Leader If You Can,
    Hedge If You Must", 2014, Lemma 3 and Theorem 8).

    With a rate, ``regret ≤ ln H / η + η/2 Σ_t Σ_h π_t(h) L_t(h)²`` for losses of at least 0.

    Parameters
    ----------
    size
        H ≥ 2.
    rate
        η > 0; None to adapt it.

    Attributes
    ----------
    cumulative
        Σ L(h) of every hypothesis, shape (H,).
    gap
        Δ.
    """

    def __init__(self, size: int, rate: float | None = None) -> None:
        self.cumulative = np.zeros(size)
        self.gap = 0.0
        self._fixed = rate
        self._log_size = math.log(size)

    @property
    def rate(self) -> float:
        """η_t; infinite before there was any loss."""
        if self._fixed is not None:
            return self._fixed
        return self._log_size / self.gap if self.gap > 0.0 else math.inf

    def distribution(self) -> FloatArray:
        """π_t, shape (H,)."""
        above = self.cumulative - self.cumulative.min()
        if math.isinf(self.rate):
            odds = (above == 0.0).astype(np.float64)
        else:
            odds = np.exp(-self.rate * above)
        return np.asarray(odds / odds.sum())

    def learn(self, losses: FloatArray, distribution: FloatArray) -> None:
        """Take in the losses of a round.

        Parameters
        ----------
        losses
            L_t(h), shape (H,).
        distribution
            π_t, as it was given before these losses.
        """
        if self._fixed is None:
            least = float(losses[distribution > 0.0].min())
            mixed = least
            if not math.isinf(self.rate):
                odds = np.exp(-self.rate * np.maximum(losses - least, 0.0))
                mixed = least - math.log(float(distribution @ odds)) / self.rate
            # Jensen's inequality, but for rounding.
            self.gap += max(float(distribution @ losses) - mixed, 0.0)
        self.cumulative += losses


class Exp2:
    """Individually fair learning over an explicit class, at a cost of O(H k) a round.

    Bechavod and Roth, 2022, section 4; with exponential weights on the semi-bandit's losses (Dani,
    Hayes and Kakade, 2008; Bubeck, Cesa-Bianchi and Kakade, 2012).

    Parameters
    ----------
    hypotheses
        The class. That the panel may be content with any price, two of it should be constant.
    penalty
        Price of a reported pair.
    door
        Share of rounds in which everybody is approved.
    rate
        η of the weights; None to adapt it.

    Attributes
    ----------
    weights
        Of the class.
    round
        How many were learned from.
    """

    def __init__(
        self,
        hypotheses: Hypotheses,
        *,
        penalty: Penalty | None = None,
        door: OpenDoor | None = None,
        rate: float | None = None,
    ) -> None:
        self.hypotheses = hypotheses
        self.weights = ExponentialWeights(len(hypotheses), rate)
        self.round = 0
        self._penalty = Penalty() if penalty is None else penalty
        self._door = OpenDoor() if door is None else door
        self._decisions: NDArray[np.float32] | None = None
        self._distribution = self.weights.distribution()

    def act(self, contexts: FloatArray, rng: np.random.Generator) -> Play:
        """Draw a hypothesis from π, or approve everybody with probability μ."""
        decisions = self.hypotheses.decide(contexts)
        distribution = self.weights.distribution()
        everybody = self._door.at(self.round + 1)
        inside = (distribution @ decisions).clip(0.0, 1.0)
        chances = everybody + (1.0 - everybody) * inside
        if rng.random() < everybody:
            approved = np.ones(len(contexts), dtype=np.bool_)
        else:
            approved = decisions[_drawn(distribution, rng)] > 0.5
        self._decisions, self._distribution = decisions, distribution
        # Who can't be approved isn't.
        inverse = 1.0 / np.maximum(chances, np.finfo(np.float64).tiny)
        return Play(contexts, chances, approved, inverse)

    def losses(self, play: Play, feedback: Feedback) -> SemiBanditLosses:
        """Estimated losses of the round's coordinates, at the price of the round."""
        price = self._penalty.at(self.round + 1, play.chances.size)
        return estimated_losses(play, feedback, price)

    def learn(self, play: Play, feedback: Feedback) -> None:
        """Weigh every hypothesis by its estimated loss in the latest play."""
        assert self._decisions is not None, "a play comes first"
        losses = self.losses(play, feedback).of(self._decisions)
        self.weights.learn(losses, self._distribution)
        self.round += 1


def _drawn(distribution: FloatArray, rng: np.random.Generator) -> int:
    cumulative = np.cumsum(distribution)
    place = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
    return int(min(place, len(distribution) - 1))


def fixed_rate(hypotheses: int, instances: int, rounds: int, price: float) -> float:
    """The η for a known horizon: ``√(2 ln H / (n D T)) / Z``, n = k + 2, D = 2k + 4, Z the range.

    With it, losses in [0, 1] after division by ``Z = max(1, C/2)`` have a regret of at most
    ``√(2 n D T ln H)``: the second moment of a round is at most ``n Σ_c E[l_c²] ≤ n D``.

    Parameters
    ----------
    hypotheses, instances, rounds
        H, k and T.
    price
        C ≥ 0.
    """
    taken = instances + 2
    bound = taken * 2 * taken * rounds
    return math.sqrt(2.0 * math.log(hypotheses) / bound) / max(1.0, price / 2.0)
