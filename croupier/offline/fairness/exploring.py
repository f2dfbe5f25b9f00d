"""The frontier of a loop: its policies, and mixtures of them, on the requests that judge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from croupier.offline.counterfactual import random_policy
from croupier.offline.evaluate import reward_range_of
from croupier.offline.fairness.frontier import (
    FrontierPoint,
    PolicyOnPairs,
    StoredDistances,
    frontier,
    mixed,
    stored_distances,
)
from croupier.offline.fairness.individual_gate import generation_policy, treated_by
from croupier.offline.fairness.individuals import (
    REQUEST,
    Individuals,
    comparable,
    judged_table,
    panel_of,
)
from croupier.offline.ope import SNIPS, LoggedBatch
from croupier.policy.errors import NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from croupier.offline.lake import Lake
    from croupier.offline.ope import Estimate
    from croupier.policy.fairness.auditors import FloatArray
    from croupier.policy.fairness.config import IndividualFairness
    from croupier.policy.generation import Generation
    from croupier.policy.loop import LoopConfig

__all__ = ("Frontier", "explore_frontier")

_ROWS = 5000


class Frontier(msgspec.Struct, frozen=True, kw_only=True):
    """A loop's frontier, with what it can be explored from again.

    Attributes
    ----------
    loop, rows
        Whose, and on how many judged interactions.
    points
        Every policy under every α and γ.
    stored
        The distances.
    policies
        With their gaps and values: with `stored`, all that
        :func:`~croupier.offline.fairness.frontier.frontier` needs for other α and γ.
    """

    loop: str
    rows: int
    points: tuple[FrontierPoint, ...]
    stored: StoredDistances
    policies: tuple[PolicyOnPairs, ...]


def explore_frontier(
    lake: Lake,
    interactions: pl.DataFrame,
    generations: Mapping[str, Generation],
    config: LoopConfig,
    fairness: IndividualFairness,
    *,
    alphas: Sequence[float],
    gammas: Sequence[float],
    uniform_shares: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    confidence: float = 0.95,
    seed: int = 0,
) -> Frontier:
    """Value against violations, of generations and of their mixtures with the uniform policy.

    Values are SNIPS estimates; those of a mixture are of its own probabilities. Violations are of
    disjoint random pairs of the same requests.

    Parameters
    ----------
    lake
        That has the judgements.
    interactions
        Rows of one loop that none of the generations has learned from, at least 20 of them.
    generations
        By the names that they are shown with.
    config, fairness
        Of the loop.
    alphas, gammas
        The meanings of fairness.
    uniform_shares
        λ of the mixtures ``(1 - λ) π + λ u``, in (0, 1].
    confidence
        Of all intervals, in (0, 1).
    seed
        Of the pairs.

    Raises
    ------
    NotEnoughDataError
        If there are too few rows, or nobody can judge.
    InvalidInputError
        If a request can't be encoded.
    """
    loop = str(interactions["loop"][0]) if len(interactions) else ""
    judged = judged_table(lake, loop)
    rows = comparable(interactions, fairness)
    if len(rows) < 4:
        raise NotEnoughDataError(f"a frontier needs at least 4 interactions, got {len(rows)}")
    rows = rows.sample(min(_ROWS, len(rows)), shuffle=True, seed=seed)
    individuals = Individuals.of(rows, fairness)
    panel = panel_of(fairness, individuals, judged)
    stored = stored_distances(panel.panel, panel.names, rows["decision_id"].to_list())
    asked = {name: generation_policy(each) for name, each in generations.items()}
    taken = tuple(sorted(set(rows["action_ids"].explode())))
    place = {action: index for index, action in enumerate(taken)}
    uniform = treated_by(random_policy, rows.select(REQUEST), taken)
    full = {name: treated_by(policy, rows.select(REQUEST), taken) for name, policy in asked.items()}
    columns = [place[action] for action in individuals.actions]
    chosen = np.array([place[action] for action in rows["action_id"]], dtype=np.int64)
    policies = []
    even = len(rows) // 2 * 2
    for name, pmf in mixed(full, uniform, uniform_shares).items():
        value = _value(rows, pmf[np.arange(len(rows)), chosen], config, confidence)
        policies.append(PolicyOnPairs.of(name, pmf[:even, columns], value, fairness.gap))
    points = frontier(stored, policies, alphas, gammas, confidence=confidence)
    return Frontier(
        loop=loop,
        rows=len(rows),
        points=tuple(points),
        stored=stored,
        policies=tuple(policies),
    )


def _value(
    rows: pl.DataFrame, probability: FloatArray, config: LoopConfig, confidence: float
) -> Estimate | None:
    """What a policy is worth by SNIPS; None if the log can't tell."""
    propensity = rows["propensity"].to_numpy()
    batch = LoggedBatch(
        reward=rows["reward"].to_numpy(),
        propensity=propensity,
        target_probability=probability,
        keep_prob=rows["keep_prob"].to_numpy(),
    )
    largest = float(max(1.0, (1.0 / propensity).max()))
    try:
        estimator = SNIPS(reward_range=reward_range_of(rows, config), weight_range=(0.0, largest))
        return estimator.add(batch).result(confidence)
    except NotEnoughDataError:
        return None
