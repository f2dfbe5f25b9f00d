"""Evaluating two policies on logged interactions that neither of them learned from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec
import numpy as np

from croupier.offline.interactions import logged_requests
from croupier.offline.ope import (
    DR,
    IPS,
    SNIPS,
    Difference,
    Estimate,
    Estimator,
    LoggedBatch,
    PairedBatch,
)
from croupier.policy.errors import NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl
    from numpy.typing import NDArray

    from croupier.policy.generation import Generation
    from croupier.policy.loop import LoopConfig

__all__ = ("LOGGED", "EstimatorName", "Evaluation", "PolicyValue", "evaluate")

EstimatorName: TypeAlias = Literal["ips", "snips", "dr"]

_ESTIMATORS: dict[EstimatorName, type[Estimator]] = {"ips": IPS, "snips": SNIPS, "dr": DR}

LOGGED = "logged"
"""Name of whatever made the log; its value is the mean of the rewards."""

MIN_ROWS = 20


class PolicyValue(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy is worth, by every estimator."""

    name: str
    estimates: dict[EstimatorName, Estimate]


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Two policies on one log.

    Attributes
    ----------
    loop
        Whose log.
    rows, nonzero_rewards
        Interactions judged on, and how many of them had a reward other than 0.
    policies
        The champion (or the log's own policy) and the challenger.
    differences
        Challenger less champion, by every estimator, from paired rows.
    """

    loop: str
    rows: int
    nonzero_rewards: int
    policies: tuple[PolicyValue, PolicyValue]
    differences: dict[EstimatorName, Estimate]


def evaluate(
    interactions: pl.DataFrame,
    champion: Generation | None,
    challenger: Generation,
    config: LoopConfig,
    *,
    confidence: float = 0.95,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Estimate both policies' values and their difference from logged propensities.

    The reward model of the doubly robust estimator is the challenger's oracle, which must not
    have learned from these rows.

    Parameters
    ----------
    interactions
        Rows of the interactions table, of one loop.
    champion
        The policy to compare with; None compares with whatever made the log.
    challenger
        The policy to judge.
    config
        Of the loop: the range of its reward.
    confidence
        Of all intervals, in (0, 1).
    progress
        Called with rows done and in all.

    Raises
    ------
    NotEnoughDataError
        If there are fewer than 20 rows.
    """
    if len(interactions) < MIN_ROWS:
        raise NotEnoughDataError(
            f"an evaluation needs at least {MIN_ROWS} judged interactions, got {len(interactions)}"
        )
    seen = _replay(interactions, champion, challenger, config, progress)
    names = (LOGGED if champion is None else _name(champion), _name(challenger))
    batches = [_batch(interactions, seen.q_logged, policy) for policy in seen.policies]
    estimators = {
        kind: [
            _ESTIMATORS[kind](
                reward_range=(config.reward_min, config.reward_max),
                weight_range=policy.weight_range,
            )
            for policy in seen.policies
        ]
        for kind in _ESTIMATORS
    }
    first, second = (
        PolicyValue(
            name=name,
            estimates={
                kind: pair[side].add(batches[side]).result(confidence)
                for kind, pair in estimators.items()
            },
        )
        for side, name in enumerate(names)
    )
    paired = PairedBatch(a=batches[0], b=batches[1])
    return Evaluation(
        loop=challenger.loop,
        rows=len(interactions),
        nonzero_rewards=int(np.count_nonzero(batches[0].reward)),
        policies=(first, second),
        differences={
            kind: Difference(*pair).add(paired).result(confidence)
            for kind, pair in estimators.items()
        },
    )


@dataclass(frozen=True, slots=True)
class _PolicyOnLog:
    """What a policy would have done with every logged request.

    Attributes
    ----------
    probability
        Of the logged action, shape (n,).
    q_target
        Expected reward by the reward model, shape (n,).
    weight_range
        Within which every weight lies that these requests could have given.
    """

    probability: NDArray[np.float64]
    q_target: NDArray[np.float64]
    weight_range: tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Replay:
    q_logged: NDArray[np.float64]
    policies: tuple[_PolicyOnLog, _PolicyOnLog]


def _replay(
    interactions: pl.DataFrame,
    champion: Generation | None,
    challenger: Generation,
    config: LoopConfig,
    progress: Callable[[int, int], None] | None,
) -> _Replay:
    """Ask both policies, row by row, what they would have done."""
    n = len(interactions)
    q_logged, probability, q_target = np.zeros(n), np.zeros((2, n)), np.zeros((2, n))
    largest = np.ones(2)
    logged_pmfs = interactions["pmf"]
    for row, request in enumerate(logged_requests(interactions)):
        asked = (request.context, request.actions, request.eligible)
        target, scores = challenger.pmf(*asked)
        model = np.zeros(len(target)) if scores is None else scores
        model = np.clip(model, config.reward_min, config.reward_max)
        q_logged[row] = model[request.chosen]
        pmfs = [target if champion is None else champion.pmf(*asked)[0], target]
        for side, pmf in enumerate(pmfs):
            probability[side, row], q_target[side, row] = pmf[request.chosen], pmf @ model
            largest[side] = max(largest[side], _largest_weight(pmf, logged_pmfs[row]))
        if progress is not None and (row % 500 == 499 or row + 1 == n):
            progress(row + 1, n)
    policies = [
        _PolicyOnLog(probability[side], q_target[side], (0.0, float(largest[side])))
        for side in range(2)
    ]
    if champion is None:
        # The log's own policy: weight 1 everywhere, and the model's error cancels itself.
        propensity = interactions["propensity"].to_numpy()
        policies[0] = _PolicyOnLog(propensity, q_logged, (1.0, 1.0))
    return _Replay(q_logged, (policies[0], policies[1]))


def _largest_weight(target: NDArray[np.float64], logged: pl.Series | None) -> float:
    """Largest weight that another draw from the logged pmf could have had."""
    if logged is None:
        return np.inf
    possible = logged.to_numpy()
    drawn = possible > 0.0
    return float((target[drawn] / possible[drawn]).max())


def _batch(
    interactions: pl.DataFrame, q_logged: NDArray[np.float64], policy: _PolicyOnLog
) -> LoggedBatch:
    return LoggedBatch(
        reward=interactions["reward"].to_numpy(),
        propensity=interactions["propensity"].to_numpy(),
        target_probability=policy.probability,
        keep_prob=interactions["keep_prob"].to_numpy(),
        q_logged=q_logged,
        q_target=policy.q_target,
    )


def _name(generation: Generation) -> str:
    return f"generation {generation.number}"
