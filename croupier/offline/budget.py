"""The safety budget of a conservative generation, added up from the log."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from croupier.offline.interactions import logged_requests
from croupier.policy.errors import InvalidInputError
from croupier.policy.exploration import Conservative
from croupier.policy.safety import SafetyBudget

if TYPE_CHECKING:
    from croupier.policy.loop import LoopConfig
    from croupier.policy.oracle import Oracle

__all__ = ("decision_budget", "safety_budget")

_DAY = timedelta(days=1)


def decision_budget(interactions: pl.DataFrame, oracle: Oracle, config: LoopConfig) -> float:
    """What each decision of a new generation may spend of what earlier ones have saved.

    The learner's interactions stand for all: their savings are shared out among as many of them as
    a generation is expected to serve, that is, as were made in the last day or by the generation
    that served last, whichever is more.

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
    exploration = config.exploration
    if not (isinstance(exploration, Conservative) and exploration.radius == 0.0):
        return 0.0
    return safety_budget(interactions, oracle, config).per_decision(_expected(interactions))


def safety_budget(interactions: pl.DataFrame, oracle: Oracle, config: LoopConfig) -> SafetyBudget:
    """Add up what was played against what the baseline would have earned, by an oracle's word.

    A decision that played the baseline for certain was held, any other one explored with its logged
    pmf. The slack is the reward's range: `n` explored decisions must have saved ``range·sqrt(n)``
    more than they spend, for the errors of the predictions. Rows without a pmf or a baseline, or
    that can't be encoded, don't count.

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
    for request, pmf in zip(logged_requests(interactions), interactions["pmf"], strict=True):
        if request.baseline is None or pmf is None:
            continue
        try:
            predicted = oracle.score(request.context, request.actions)
        except InvalidInputError:
            continue
        gains = np.clip(predicted, config.reward_min, config.reward_max) - lowest
        played, baseline = pmf.to_numpy(), float(gains[request.baseline])
        if played[request.baseline] >= 1.0:
            budget = budget.held(baseline)
        else:
            budget = budget.explored(float(played @ gains), baseline)
    return budget


def _expected(interactions: pl.DataFrame) -> int:
    """How many of the learner's decisions a generation is expected to serve."""
    served = interactions.filter(pl.col("ts").is_not_null()).sort("ts", "offset")
    if served.is_empty():
        return len(interactions)
    last = served["ts"][-1]
    by_the_last = pl.col("generation").eq_missing(served["generation"][-1])
    return max(served.filter(pl.col("ts") > last - _DAY).height, served.filter(by_the_last).height)
