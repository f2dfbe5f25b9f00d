"""The safety budget of a conservative generation, added up from the log."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from croupier.offline.interactions import keep_weights, logged_requests
from croupier.policy.errors import InvalidInputError
from croupier.policy.exploration import Conservative
from croupier.policy.safety import SafetyBudget

if TYPE_CHECKING:
    from croupier.policy.loop import LoopConfig
    from croupier.policy.oracle import Oracle

__all__ = ("decision_budget", "has_budget", "safety_budget")

_DAY = timedelta(days=1)


def decision_budget(interactions: pl.DataFrame, oracle: Oracle, config: LoopConfig) -> float:
    """What each decision of a new generation may spend of what earlier ones have saved.

    The learner's interactions stand for all: their savings are shared out among as many of them as
    a generation is expected to serve, that is, as were made in the last day or by the generation
    that served last, whichever is more. A row of a subsampled log counts for all decisions that it
    stands for, both in the savings and among those expected.

    Parameters
    ----------
    interactions
        The rows that the oracle learned from, of one loop.
    oracle
        Of the new generation.
    config
        Of the loop.

    Returns
    -------
    float
        Below 0 while too little was saved to bet on the estimates. 0 for an exploration that has no
        use for a budget: one that isn't conservative, or one with a `radius`, which holds every
        decision to its own threshold.
    """
    if not has_budget(config):
        return 0.0
    return safety_budget(interactions, oracle, config).per_decision(_expected(interactions))


def has_budget(config: LoopConfig) -> bool:
    """Whether a loop's exploration is conservative, and without a `radius`."""
    exploration = config.exploration
    return isinstance(exploration, Conservative) and exploration.radius == 0.0


def safety_budget(interactions: pl.DataFrame, oracle: Oracle, config: LoopConfig) -> SafetyBudget:
    """Add up what was played against what the baseline would have earned, by an oracle's word.

    A decision that played the baseline for certain was held, any other one explored with its logged
    pmf. The slack is the reward's range: `n` explored decisions must have saved ``range·sqrt(n)``
    more than they spend, for the errors of the predictions. Rows without a pmf or a baseline, or
    that can't be encoded, don't count. A row of a subsampled log counts ``1 / keep_prob`` times in
    the sum, and the allowance grows by what the sum may be off because of that, see
    :meth:`~croupier.policy.safety.SafetyBudget.explored`.

    Parameters
    ----------
    interactions
        Rows of the interactions table, of one loop with a conservative exploration.
    oracle
        Predicts the rewards; a prediction counts as within the reward's range.
    config
        Of the loop.
    """
    exploration = config.exploration
    assert isinstance(exploration, Conservative)
    lowest = exploration.reward_min
    budget = SafetyBudget(alpha=exploration.alpha, slack=config.reward_max - config.reward_min)
    weights = keep_weights(interactions).tolist()
    for request, pmf, weight in zip(
        logged_requests(interactions), interactions["pmf"], weights, strict=True
    ):
        if request.baseline is None or pmf is None:
            continue
        try:
            predicted = oracle.score(request.context, request.actions)
        except InvalidInputError:
            continue
        gains = np.clip(predicted, config.reward_min, config.reward_max) - lowest
        played, baseline = pmf.to_numpy(), float(gains[request.baseline])
        if played[request.baseline] >= 1.0:
            budget = budget.held(baseline, weight)
        else:
            budget = budget.explored(float(played @ gains), baseline, weight)
    return budget


def _expected(interactions: pl.DataFrame) -> float:
    """How many of the learner's decisions a generation is expected to serve."""
    served = interactions.filter(pl.col("ts").is_not_null()).sort("ts", "offset")
    if served.is_empty():
        return float(keep_weights(interactions).sum())
    last = served["ts"][-1]
    by_the_last = pl.col("generation").eq_missing(served["generation"][-1])
    alike = (served.filter(pl.col("ts") > last - _DAY), served.filter(by_the_last))
    return max(float(keep_weights(each).sum()) for each in alike)
