"""Conservative mixtures: an exploration that may not do much worse than the baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from croupier.policy.errors import ScoringError
from croupier.policy.exploration.base import (
    Approximation,
    ExplorationBase,
    FloatArray,
    Round,
    require,
)
from croupier.policy.exploration.custom import Custom
from croupier.policy.exploration.ensembles import Bagging, Cover
from croupier.policy.exploration.gap_weighting import Falcon, FastCB, SquareCB
from croupier.policy.exploration.intervals import RegCB
from croupier.policy.exploration.means import EpsilonGreedy, Greedy, Softmax, Uniform
from croupier.policy.exploration.thompson import Thompson

if TYPE_CHECKING:
    from croupier.policy.estimates import Estimates, Uncertainty

__all__ = ("Conservative", "Unguarded")

Unguarded: TypeAlias = (
    Uniform
    | Greedy
    | EpsilonGreedy
    | Softmax
    | SquareCB
    | Falcon
    | FastCB
    | RegCB
    | Bagging
    | Cover
    | Thompson
    | Custom
)
"""Every exploration that looks at nothing but estimates."""


class Conservative(ExplorationBase, frozen=True, tag="conservative"):
    """Another exploration, mixed with as much of the baseline as its safety asks for.

    ``p = ρ·[baseline] + (1 - ρ)·inner`` with the smallest ρ for which the mixture's value, by the
    lower ends of the estimates, is within what may be lost:

    ``(1 - ρ) Σ inner(a)·lower(a) + ρ·f(b) ≥ f(b) - alpha·(f(b) - reward_min) - budget``, with
    ``lower(a) = f(a) - radius·deviation(a)`` and b the baseline, whose own value f(b) counts as
    known.

    With a `radius` this is EpsMix for a bandit; StepMix, which mixes step by step, is the same
    policy where a decision is one step. With `radius` 0, gap weighting inside and a budget that
    :class:`~croupier.policy.safety.SafetyBudget` keeps, it is C-SquareCB (or C-FastCB): predicted
    rewards are summed, and exploration is paid for by what was earned above the baseline's share.
    Every request is held to its threshold by itself, so that the answer depends on the generation
    and the request alone and can be replayed.

    No reward is below `reward_min`, so no lower end counts as less: a share `alpha` of exploration
    is safe whatever the estimates say, and is all there is before there are any, and as long as the
    budget is below 0: then too little was saved yet to bet on the estimates being right. A floor
    holds for the mixture, and comes before the threshold.

    Attributes
    ----------
    inner
        The exploration that is kept safe.
    alpha
        Share of the baseline's value above `reward_min`, in [0, 1], that may be lost.
    radius
        Standard errors, ≥ 0, between an estimate and the value that is counted on.
    reward_min
        The reward of nothing gained, from which shares are measured.

    References
    ----------
    Li, Huang, Shen and Yang, "Near-optimal Conservative Exploration in Reinforcement Learning under
    Episode-wise Constraints", 2023 (StepMix, EpsMix); Deb, Ghavamzadeh and Banerjee, "Conservative
    Contextual Bandits: Beyond Linear Representations", 2025, Algorithms 1 and 2.
    """

    inner: Unguarded
    alpha: float = 0.1
    radius: float = 0.0
    reward_min: float = 0.0

    uses_baseline: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require("alpha", self.alpha, low=0.0, high=1.0)
        require("radius", self.radius, low=0.0)
        require("reward_min", self.reward_min)

    @property
    def needs(self) -> Uncertainty:
        """What the inner exploration needs, and standard errors where they count."""
        return self.inner.needs | (frozenset({"deviation"}) if self.radius > 0.0 else frozenset())

    @property
    def wants(self) -> Uncertainty:
        """What it needs itself, and what the inner exploration wants."""
        return self.needs | self.inner.wants

    def written(self) -> dict[str, Any]:
        """As all explorations are, the inner one too."""
        return super().written() | {"inner": self.inner.written()}

    @property
    def caution(self) -> str | None:
        """Without a floor: that decisions in doubt say nothing of the other actions."""
        if self.floor > 0.0:
            return None
        return (
            "where it is in doubt it plays the baseline alone, and learns nothing there; give it "
            "a floor"
        )

    def approximation(self, pmf: FloatArray, confidence: float = 0.999) -> Approximation | None:
        """That of the inner exploration: a mixture with the baseline is off by no more."""
        return self.inner.approximation(pmf, confidence)

    def baseline_share(self, estimates: Estimates, inner: FloatArray, round_: Round) -> float:
        """ρ: the smallest share of the baseline that keeps the mixture safe, in [0, 1].

        Parameters
        ----------
        estimates
            Of the eligible actions.
        inner
            The inner exploration's pmf, shape (K,).
        round_
            With the baseline and the budget.
        """
        if round_.baseline is None:
            raise ScoringError("conservative needs to know the baseline")
        if round_.training_rows == 0 or round_.budget < 0.0:
            return 1.0 - self.alpha
        lower = estimates.mean
        if self.radius > 0.0:
            assert estimates.deviation is not None, "needs says so"
            lower = lower - self.radius * estimates.deviation
        known = max(float(estimates.mean[round_.baseline]), self.reward_min)
        lost = known - float(inner @ np.maximum(lower, self.reward_min))
        allowed = max(self.alpha * (known - self.reward_min) + round_.budget, 0.0)
        return 0.0 if lost <= allowed else 1.0 - allowed / lost

    def _explore(self, estimates: Estimates, round_: Round) -> FloatArray:
        inner = self.inner.pmf(
            estimates, training_rows=round_.training_rows, baseline=round_.baseline
        )
        share = self.baseline_share(estimates, inner, round_)
        pmf = (1.0 - share) * inner
        pmf[round_.baseline] += share
        return np.asarray(pmf)
