"""Policies that a log can be asked about by a name: generations, and those that never learn.

``champion`` and numbers are generations; ``logged`` is whatever made the log; ``uniform`` draws
any eligible action; ``baseline`` is the application's own choice; ``fixed:<action>`` takes one
action wherever it may; ``best-fixed`` is the one of these that rows which don't judge speak for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from croupier.offline.counterfactual import baseline_policy, random_policy
from croupier.offline.evaluate import LOGGED, reward_range_of
from croupier.offline.ope import IPS, LoggedBatch
from croupier.policy.errors import InvalidInputError, NotEnoughDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from croupier.offline.counterfactual import Policy
    from croupier.offline.interactions import LoggedRequest
    from croupier.offline.registry import Registry
    from croupier.policy.generation import Generation
    from croupier.policy.loop import LoopConfig

__all__ = ("FixedAction", "best_fixed", "named_policies")

_FIXED = "fixed:"
_WAYS = "a generation's number, champion, logged, uniform, baseline, best-fixed or fixed:<action>"


@dataclass(frozen=True, slots=True)
class FixedAction:
    """Takes one action wherever it may be chosen, and any eligible one elsewhere."""

    action: str

    def __call__(self, request: LoggedRequest) -> NDArray[np.float64]:
        """Probability of every action."""
        pmf = np.array([float(each.id == self.action) for each in request.actions])
        if request.eligible is not None:
            pmf = np.where(request.eligible, pmf, 0.0)
        return pmf if pmf.any() else random_policy(request)


def named_policies(
    names: Iterable[str],
    registry: Registry,
    loop: str,
    config: LoopConfig,
    learner_rows: Callable[[], pl.DataFrame],
) -> dict[str, Generation | Policy | None]:
    """The policies that a person means, by the names that they are shown with.

    Parameters
    ----------
    names
        As in the module's description.
    registry, loop, config
        Where the loop's generations are.
    learner_rows
        Gives the interactions that ``best-fixed`` is chosen from: none that judge.

    Raises
    ------
    InvalidInputError
        If a name means nothing, or nothing that the loop has, or two mean the same.
    GenerationError
        If the registry has a generation out of order.
    NotEnoughDataError
        If there are too few rows to choose a fixed action from.
    """
    found: dict[str, Generation | Policy | None] = {}
    for name in names:
        shown, policy = _policy(name.strip(), registry, loop, config, learner_rows)
        if shown in found:
            raise InvalidInputError("policy", f"expected every policy once, got {name!r} again")
        found[shown] = policy
    return found


def best_fixed(interactions: pl.DataFrame, config: LoopConfig) -> str:
    """The action that is worth most for certain if it is always taken.

    That of the highest lower end of a 95 % interval by IPS, ``mean 1[a_i = a] r_i / p_i`` over the
    rows where it is eligible: the highest estimate would often be that of an action that was lucky
    in a few rows. Of equal ends, as at 0, the higher estimate counts.

    Parameters
    ----------
    interactions
        Rows of the interactions table, of one loop, that judge nobody.
    config
        Of the loop: the range of its reward.

    Raises
    ------
    InvalidInputError
        If there are slates, whose places are not single actions.
    NotEnoughDataError
        If no action has been eligible in three rows.
    """
    if interactions["slate_size"].null_count() < len(interactions):
        raise InvalidInputError("policy", "expected no best-fixed for a loop of slates")
    ends: dict[str, tuple[float, float]] = {}
    for action in interactions["action_ids"].explode().drop_nulls().unique().sort():
        barred = pl.col("excluded").list.contains(action).fill_null(value=False)
        rows = interactions.filter(pl.col("action_ids").list.contains(action), ~barred)
        try:
            ends[action] = _worth(rows, action, reward_range_of(interactions, config))
        except NotEnoughDataError:
            continue
    if not ends:
        raise NotEnoughDataError("best-fixed needs three interactions that judge nobody")
    return max(ends, key=lambda each: ends[each])


def _worth(
    rows: pl.DataFrame, action: str, reward_range: tuple[float, float]
) -> tuple[float, float]:
    """Lower end and estimate."""
    batch = LoggedBatch(
        reward=rows["reward"].to_numpy(),
        propensity=rows["propensity"].to_numpy(),
        target_probability=(rows["action_id"] == action).to_numpy(),
        keep_prob=rows["keep_prob"].to_numpy(),
    )
    found = IPS(reward_range=reward_range).add(batch).result(0.95)
    return found.lower, found.value


def _policy(
    name: str,
    registry: Registry,
    loop: str,
    config: LoopConfig,
    learner_rows: Callable[[], pl.DataFrame],
) -> tuple[str, Generation | Policy | None]:
    match name:
        case "logged" | "logging":
            return LOGGED, None
        case "uniform":
            return name, random_policy
        case "baseline":
            return name, baseline_policy
        case "champion":
            number = registry.champion(loop)
            champion = registry.load(loop, number, config.exploration)
            return f"champion (generation {number})", champion
        case "best-fixed":
            action = best_fixed(learner_rows(), config)
            return f"best-fixed ({action})", FixedAction(action)
    if name.startswith(_FIXED) and len(name) > len(_FIXED):
        return name, FixedAction(name.removeprefix(_FIXED))
    if not name.isdecimal():
        raise InvalidInputError("policy", f"expected {_WAYS}, got {name!r}")
    number, known = int(name), [0, *registry.numbers(loop)]
    if number not in known:
        raise InvalidInputError(
            "policy",
            f"expected a generation of {loop} ({', '.join(map(str, known))}), got {number}",
        )
    return f"generation {number}", registry.load(loop, number, config.exploration)
