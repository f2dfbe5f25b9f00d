"""The safety budget: what a conservative policy has earned and may spend on exploring."""

from __future__ import annotations

import math

import msgspec

__all__ = ("SafetyBudget",)


class SafetyBudget(msgspec.Struct, frozen=True, kw_only=True):
    """Running sums of what was played against what the baseline would have earned.

    ``saved = Σ_explored [value - (1 - alpha)·baseline] + alpha·Σ_rest baseline``, in rewards above
    the lowest possible one; predicted values are summed, not observed rewards, which is what makes
    the sums certain enough to act upon. Immutable: :meth:`explored` and :meth:`held` give the next
    budget.

    Attributes
    ----------
    alpha
        Share of the baseline's value, in [0, 1], that may be lost.
    slack
        Factor ≥ 0 on ``sqrt(explored)``, the allowance for errors of the predictions; the nightly
        job takes the range of the reward.
    saved
        The sum above.
    explorations
        Decisions that explored. With weights it is what the allowance counts instead: the variance
        of `saved` in units of `slack`, see :meth:`explored` and :meth:`held`.

    References
    ----------
    Deb, Ghavamzadeh and Banerjee, "Conservative Contextual Bandits: Beyond Linear
    Representations", 2025, Algorithm 1, whose sums are costs and whose slack is
    ``16 sqrt(m (Reg_sq(m) + log(8/δ)))``; Kazerouni et al., "Conservative Contextual Linear
    Bandits", 2017.
    """

    alpha: float = 0.1
    slack: float = 0.0
    saved: float = 0.0
    explorations: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha!r}")
        if not 0.0 <= self.slack < math.inf:
            raise ValueError(f"slack must be in [0, inf), got {self.slack!r}")

    @property
    def available(self) -> float:
        """What may be spent: `saved` less the allowance for errors; can be below 0."""
        return self.saved - self.slack * math.sqrt(self.explorations)

    def allows(self, value: float, baseline: float) -> bool:
        """Whether a decision may explore: whether the budget would still be at least 0 after it.

        Parameters
        ----------
        value
            ``Σ_a p(a)·f(a)``, what exploring is predicted to earn, above the lowest reward.
        baseline
            What the baseline earns, above the lowest reward.
        """
        return self.explored(value, baseline).available >= 0.0

    def explored(self, value: float, baseline: float, weight: float = 1.0) -> SafetyBudget:
        """The budget after a decision that explored.

        Parameters
        ----------
        value, baseline
            As for :meth:`allows`.
        weight
            How many decisions c ≥ 1 it stands for, ``1 / keep_prob`` in a subsampled log. The sum
            then is an estimate of that of all decisions, whose variance ``(c² - c)·x²`` comes on
            top of that of c predictions: the allowance counts c² for both.
        """
        return msgspec.structs.replace(
            self,
            saved=self.saved + weight * (value - (1.0 - self.alpha) * baseline),
            explorations=self.explorations + weight * weight,
        )

    def held(self, baseline: float, weight: float = 1.0) -> SafetyBudget:
        """The budget after a decision that played the baseline.

        Parameters
        ----------
        baseline
            As for :meth:`allows`.
        weight
            As for :meth:`explored`; what is saved, ``alpha·baseline``, needs no allowance for
            predictions, but ``c² - c`` times its square for the decisions that were not kept.
        """
        return msgspec.structs.replace(
            self,
            saved=self.saved + weight * self.alpha * baseline,
            explorations=self.explorations + self.alpha**2 * (weight * weight - weight),
        )

    def per_decision(self, decisions: float) -> float:
        """What each of the coming `decisions` may spend beyond its own `alpha`.

        For a policy that is fixed for a while, such as a generation that serves until the next
        night: the whole budget is spent only once all of them were made. Below 0 if there is less
        than nothing to spend; a conservative exploration then bets nothing on its estimates.
        """
        return self.available / max(decisions, 1.0)
