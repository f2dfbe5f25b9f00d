"""What any number of policies would have done with the requests of a log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from croupier.offline.engine import LOCAL
from croupier.offline.evaluate import UNSEEN, largest_weight, of_the_row
from croupier.offline.interactions import logged_requests
from croupier.policy.errors import InvalidInputError
from croupier.policy.generation import Generation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from croupier.offline.counterfactual import Policy
    from croupier.offline.engine import Engine
    from croupier.offline.interactions import LoggedRequest

    FloatArray: TypeAlias = NDArray[np.float64]
    BoolArray: TypeAlias = NDArray[np.bool_]
    Asked: TypeAlias = Generation | Policy | Literal["best"] | None

__all__ = ("BEST", "Answers", "ask_policies")

BEST: Literal["best"] = "best"
"""Stands for a policy that takes what the reward model thinks best."""

# Rows asked about at once; a task of a cluster has to be worth the bringing of the policies.
_AT_ONCE, _TO_A_TASK = 500, 2000


@dataclass(frozen=True, eq=False)
class Answers:
    """Of P policies on n rows.

    Attributes
    ----------
    usable
        Whether a row tells what a policy is worth: it may take nothing there that could not have
        been drawn, and knows what to do; shape (P, n).
    probability
        Of the logged action, shape (P, n).
    q_target, q_logged
        Expected reward by the reward model of the policies, shape (P, n), and of the logged
        action, shape (n,); 0 without a model.
    largest
        Largest weight that the row's request could have given, shape (P, n).
    unseen
        Probability of what could not have been drawn, shape (P, n).
    explored
        Whether several actions could have been drawn, shape (n,).
    exposure
        Probability of every one of the A actions that were named, 0 where it isn't among a
        request's, shape (P, A, n).
    """

    usable: BoolArray
    probability: FloatArray
    q_target: FloatArray
    q_logged: FloatArray
    largest: FloatArray
    unseen: FloatArray
    explored: BoolArray
    exposure: FloatArray

    @classmethod
    def empty(cls, policies: int, rows: int, actions: int = 0) -> Answers:
        """Nothing answered yet."""
        shape = policies, rows
        return cls(
            usable=np.zeros(shape, dtype=np.bool_),
            probability=np.zeros(shape),
            q_target=np.zeros(shape),
            q_logged=np.zeros(rows),
            largest=np.ones(shape),
            unseen=np.zeros(shape),
            explored=np.zeros(rows, dtype=np.bool_),
            exposure=np.zeros((policies, actions, rows)),
        )


def ask_policies(
    interactions: pl.DataFrame,
    policies: Sequence[Asked],
    reward_range: tuple[float, float],
    *,
    model: Generation | Sequence[FloatArray] | None = None,
    actions: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
    engine: Engine = LOCAL,
) -> Answers:
    """Ask policies, row by row, what they would have done.

    Parameters
    ----------
    interactions
        Rows of the interactions table, of one loop.
    policies
        None is whatever made the log: its weights are 1, and the reward model's error about it
        cancels itself. :data:`BEST` takes what the reward model thinks best; it says nothing about
        places of slates, nor without a model.
    reward_range
        Within which the reward model is believed.
    model
        Whose oracle is the reward model, or predictions of every row's actions, each of shape
        (K_i,).
    actions
        Ids of actions whose probabilities are wanted.
    progress
        Called with rows done and in all.
    engine
        Asks them, part by part.
    """
    n = len(interactions)
    size = _TO_A_TASK if engine.distributed else _AT_ONCE
    generation = model if isinstance(model, Generation) else None
    given = None if isinstance(model, Generation) else model
    parts = (
        (interactions[start : start + size], None if given is None else given[start : start + size])
        for start in range(0, n, size)
    )
    shared = _Asked(tuple(policies), generation, reward_range, tuple(actions))
    found: list[Answers] = []
    done = 0
    for part in engine.map(_ask, parts, shared):
        found.append(part)
        done += len(part.explored)
        if progress is not None:
            progress(done, n)
    return Answers(
        **{
            name: np.concatenate([getattr(each, name) for each in found], axis=-1)
            for name in Answers.__dataclass_fields__
        }
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """Who is asked, within which range the reward model is believed, and what is wanted."""

    policies: tuple[Asked, ...]
    model: Generation | None
    reward_range: tuple[float, float]
    actions: tuple[str, ...] = ()


def _ask(asked: _Asked, part: tuple[pl.DataFrame, Sequence[FloatArray] | None]) -> Answers:
    """Ask all policies about some rows."""
    interactions, predictions = part
    found = Answers.empty(len(asked.policies), len(interactions), len(asked.actions))
    named = {action: place for place, action in enumerate(asked.actions)}
    propensity, logged_pmfs = interactions["propensity"].to_numpy(), interactions["pmf"]
    for row, request in enumerate(logged_requests(interactions)):
        try:
            pmfs, scores = _answers(asked, request)
        except InvalidInputError:
            # No oracle can encode it; scorers refuse such a request as soon as they serve one.
            continue
        logged = logged_pmfs[row]
        possible = None if logged is None else logged.to_numpy()
        if possible is not None:
            found.explored[row] = np.count_nonzero(possible > 0.0) > 1
        predicted = scores if predictions is None else predictions[row]
        model = np.clip(
            np.zeros(len(request.actions)) if predicted is None else predicted, *asked.reward_range
        )
        found.q_logged[row] = model[request.chosen]
        wanted = [(a, named[each.id]) for a, each in enumerate(request.actions) if each.id in named]
        for place, (policy, own) in enumerate(zip(asked.policies, pmfs, strict=True)):
            pmf = _best(model, request) if policy == BEST and predicted is not None else own
            if pmf is None and policy is None:
                pmf = possible
            if pmf is not None:
                for a, column in wanted:
                    found.exposure[place, column, row] = pmf[a]
            if policy is None:
                found.usable[place, row] = True
                found.probability[place, row] = propensity[row]
                found.q_target[place, row] = model[request.chosen]
            elif pmf is not None:
                unseen = 0.0 if possible is None else float(pmf[possible <= 0.0].sum())
                found.unseen[place, row] = unseen
                found.usable[place, row] = unseen <= UNSEEN
                found.probability[place, row] = pmf[request.chosen]
                found.q_target[place, row] = pmf @ model
                found.largest[place, row] = largest_weight(pmf, possible)
    return found


def _best(model: FloatArray, request: LoggedRequest) -> FloatArray | None:
    """All on the eligible action with the highest prediction, the first of several."""
    if request.slate_size is not None:
        return None
    scores = model if request.eligible is None else np.where(request.eligible, model, -np.inf)
    pmf = np.zeros(len(model))
    pmf[np.argmax(scores)] = 1.0
    return pmf


def _answers(
    asked: _Asked, request: LoggedRequest
) -> tuple[list[FloatArray | None], FloatArray | None]:
    """Every policy's pmf, None where it has none, and the scores of the reward model."""
    pmfs: list[FloatArray | None] = []
    scores = None
    scored = asked.model is None
    question = (request.context, request.actions, request.eligible, request.baseline)
    for policy in asked.policies:
        if isinstance(policy, Generation):
            pmf, own = policy.pmf(*question)
            pmfs.append(of_the_row(pmf, request))
            if policy is asked.model:
                scores, scored = own, True
            continue
        answer = None if policy is None or isinstance(policy, str) else policy(request)
        pmfs.append(None if answer is None else of_the_row(answer, request))
    if not scored and asked.model is not None:
        scores = asked.model.pmf(*question)[1]
    return pmfs, scores
