"""Evaluating two policies on logged interactions that neither of them learned from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec
import numpy as np
import polars as pl

from croupier.offline.engine import LOCAL
from croupier.offline.harm import GuardrailValue, guardrail_values
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
from croupier.offline.ope.diagnostics import (
    SupportLimits,
    WeightDiagnostics,
    WeightMonitor,
    objections,
)
from croupier.offline.stability import Stability, distances
from croupier.offline.weight_histogram import WeightHistogram
from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.policy.slates import inclusion

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from croupier.offline.engine import Engine
    from croupier.offline.interactions import LoggedRequest
    from croupier.policy.generation import Generation
    from croupier.policy.loop import LoopConfig

__all__ = (
    "LOGGED",
    "UNSEEN",
    "EstimatorName",
    "Evaluation",
    "PolicyValue",
    "evaluate",
    "largest_weight",
    "logged_value",
    "of_the_row",
    "reward_range_of",
)

EstimatorName: TypeAlias = Literal["ips", "snips", "dr"]

_ESTIMATORS: dict[EstimatorName, type[Estimator]] = {"ips": IPS, "snips": SNIPS, "dr": DR}

LOGGED = "logged"
"""Name of whatever made the log; its value is the mean of the rewards."""

MIN_ROWS = 20
# Rows asked about at once; a task of a cluster has to be worth the bringing of the policies.
_AT_ONCE, _TO_A_TASK = 500, 2000

UNSEEN = 1e-6
"""Share of a policy's choices, on one request, that the log may have had no chance to show."""


class PolicyValue(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy is worth, by every estimator, and whether the log can tell.

    Attributes
    ----------
    name
        Of the policy.
    estimates
        By estimator.
    support
        What its weights say about the log. Its `deficient` is the share of its choices, where the
        log's own policy explored, that could not have been drawn; such rows are left out.
    largest_weight
        The largest that a row of these requests could have had, times what it stands for; None if
        nothing bounds it.
    weights
        How many decisions have which weight.
    """

    name: str
    estimates: dict[EstimatorName, Estimate]
    support: WeightDiagnostics
    largest_weight: float | None
    weights: WeightHistogram

    def objections(self, limits: SupportLimits) -> list[str]:
        """What speaks against believing the estimates, see :func:`~.ope.diagnostics.objections`."""
        largest = np.inf if self.largest_weight is None else self.largest_weight
        return objections(self.name, self.support, limits, largest=largest)


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Two policies on one log.

    Attributes
    ----------
    loop
        Whose log.
    unit
        What a row is and a value is of: a ``decision``, or a ``session`` of a loop with a
        generation that decides from what came before.
    rows, nonzero_rewards
        Interactions or sessions judged on, and how many of them had a reward other than 0.
    left_out
        Interactions that say nothing about the two policies: one of them may take an action that
        could not have been drawn (the application's own choice was played, or an exploration
        without a floor), or the request is one that no oracle can encode.
    policies
        The champion (or the log's own policy) and the challenger.
    differences
        Challenger less champion, by every estimator, from paired rows.
    stability
        How far the challenger plays otherwise than the champion; None if it was compared with the
        log's own policy.
    guardrails
        What the two do to each of the loop's guardrails, in the order of their names.
    """

    loop: str
    rows: int
    left_out: int
    nonzero_rewards: int
    policies: tuple[PolicyValue, PolicyValue]
    differences: dict[EstimatorName, Estimate]
    stability: Stability | None = None
    guardrails: tuple[GuardrailValue, ...] = ()
    unit: Literal["decision", "session"] = "decision"


def evaluate(
    interactions: pl.DataFrame,
    champion: Generation | None,
    challenger: Generation,
    config: LoopConfig,
    *,
    confidence: float = 0.95,
    progress: Callable[[int, int], None] | None = None,
    engine: Engine = LOCAL,
) -> Evaluation:
    """Estimate both policies' values and their difference from logged propensities.

    The reward model of the doubly robust estimator is the challenger's oracle, which must not
    have learned from these rows. Rows that can't tell what the policies are worth are left out:
    which rows those are doesn't depend on rewards, so the rest is a fair sample of the others.

    A row is one draw. Of a slate it is one place, which both policies would have filled with their
    own inclusion probabilities; of a ranking or of slots it is a position given what was taken
    before it, so that values are those of single positions after the log's own first ones. Rows of
    one request share a context but count as if they did not.

    Parameters
    ----------
    interactions
        Rows of the interactions table, of one loop.
    champion
        The policy to compare with; None compares with whatever made the log.
    challenger
        The policy to judge.
    config
        Of the loop: the range of its reward. Where it was another one before, or several outcomes
        are summed, the range is widened to the rewards that are there. And its guardrails.
    confidence
        Of all intervals, in (0, 1); for guardrails see
        :func:`~croupier.offline.harm.guardrail_values`.
    progress
        Called with rows done and in all.
    engine
        Asks both policies, part by part.

    Raises
    ------
    NotEnoughDataError
        If there are fewer than 20 rows to judge on.
    """
    _require_rows(len(interactions), 0)
    reward_range = reward_range_of(interactions, config)
    asked = _Asked(champion, challenger, reward_range)
    seen = _replay(interactions, asked, progress, engine)
    left_out = len(interactions) - int(seen.usable.sum())
    interactions = interactions.filter(pl.Series(seen.usable))
    _require_rows(len(interactions), left_out)
    names = (LOGGED if champion is None else _name(champion), _name(challenger))
    champion_batch, challenger_batch = (
        _batch(interactions, seen.q_logged, policy) for policy in seen.policies
    )
    batches = champion_batch, challenger_batch
    estimators = {
        kind: [
            _ESTIMATORS[kind](
                reward_range=reward_range,
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
            support=_support(batches[side], seen.policies[side]),
            largest_weight=_bound(batches[side], seen.policies[side]),
            weights=WeightHistogram.of(batches[side].weight, batches[side].keep_weight),
        )
        for side, name in enumerate(names)
    )
    paired = PairedBatch(a=batches[0], b=batches[1])
    return Evaluation(
        loop=challenger.loop,
        rows=len(interactions),
        left_out=left_out,
        nonzero_rewards=int(np.count_nonzero(batches[0].reward)),
        policies=(first, second),
        differences={
            kind: Difference(*pair).add(paired).result(confidence)
            for kind, pair in estimators.items()
        },
        stability=None
        if champion is None
        else Stability.of(seen.distances, batches[0].keep_weight, confidence),
        guardrails=guardrail_values(
            interactions,
            batches,
            (seen.policies[0].weight_range, seen.policies[1].weight_range),
            config.guardrails,
            confidence=confidence,
            least=MIN_ROWS,
        ),
    )


def logged_value(
    interactions: pl.DataFrame, config: LoopConfig, *, confidence: float = 0.95
) -> Estimate:
    """What the policies that made a log earned: the mean reward, with its interval.

    Parameters
    ----------
    interactions
        Rows of the interactions table, of one loop.
    config
        Of the loop: the range of its reward.
    confidence
        Of the interval, in (0, 1).

    Raises
    ------
    NotEnoughDataError
        If there are too few rows for an interval.
    """
    propensity = interactions["propensity"].to_numpy()
    batch = LoggedBatch(
        reward=interactions["reward"].to_numpy(),
        propensity=propensity,
        target_probability=propensity,
        keep_prob=interactions["keep_prob"].to_numpy(),
    )
    reward_range = (config.reward_min, config.reward_max)
    return IPS(reward_range=reward_range, weight_range=(1.0, 1.0)).add(batch).result(confidence)


@dataclass(frozen=True, slots=True)
class _PolicyOnLog:
    """What a policy would have done with every usable request.

    Attributes
    ----------
    probability
        Of the logged action, shape (n,).
    q_target
        Expected reward by the reward model, shape (n,).
    weight_range
        Within which every weight lies that these requests could have given.
    deficient
        Share of its choices that could not have been drawn where the log's policy explored.
    """

    probability: NDArray[np.float64]
    q_target: NDArray[np.float64]
    weight_range: tuple[float, float]
    deficient: float


@dataclass(frozen=True, slots=True)
class _Replay:
    """Both policies on a log; `usable` has an entry for every row, the rest for usable ones."""

    usable: NDArray[np.bool_]
    q_logged: NDArray[np.float64]
    distances: NDArray[np.float64]
    policies: tuple[_PolicyOnLog, _PolicyOnLog]


@dataclass(frozen=True, slots=True)
class _Asked:
    """Who is asked, and within which range the reward model is believed."""

    champion: Generation | None
    challenger: Generation
    reward_range: tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Answered:
    """What was answered on some rows.

    Attributes
    ----------
    usable
        Whether a row tells about the policies, shape (n,).
    q_logged
        Reward model at the logged action, shape (n,).
    probability, q_target
        Of both policies, shape (2, n), see :class:`_PolicyOnLog`.
    distances
        Of one policy from the other, shape (3, n).
    largest
        Weight that these requests could have given, of both policies, at least 1, shape (2,).
    explored
        Decisions of the stream that the log's policy had several actions for.
    deficient
        Of these, those for which both policies would have chosen what could not be drawn: the sum
        of their probabilities, shape (2,).
    """

    usable: NDArray[np.bool_]
    q_logged: NDArray[np.float64]
    probability: NDArray[np.float64]
    q_target: NDArray[np.float64]
    distances: NDArray[np.float64]
    largest: NDArray[np.float64]
    explored: float
    deficient: NDArray[np.float64]


def _replay(
    interactions: pl.DataFrame,
    asked: _Asked,
    progress: Callable[[int, int], None] | None,
    engine: Engine,
) -> _Replay:
    """Ask both policies, row by row, what they would have done."""
    n = len(interactions)
    size = _TO_A_TASK if engine.distributed else _AT_ONCE
    parts = (interactions[first : first + size] for first in range(0, n, size))
    found: list[_Answered] = []
    done = 0
    for answered in engine.map(_ask, parts, asked):
        found.append(answered)
        done += len(answered.usable)
        if progress is not None:
            progress(done, n)
    usable = np.concatenate([each.usable for each in found])
    q_logged = np.concatenate([each.q_logged for each in found])[usable]
    probability = np.concatenate([each.probability for each in found], axis=1)[:, usable]
    q_target = np.concatenate([each.q_target for each in found], axis=1)[:, usable]
    apart = np.concatenate([each.distances for each in found], axis=1)[:, usable]
    largest = np.max([each.largest for each in found], axis=0)
    explored = sum(each.explored for each in found)
    deficient = np.sum([each.deficient for each in found], axis=0) / (explored or 1.0)
    policies = [
        _PolicyOnLog(
            probability[side], q_target[side], (0.0, float(largest[side])), float(deficient[side])
        )
        for side in range(2)
    ]
    if asked.champion is None:
        # The log's own policy: weight 1 everywhere, and the model's error cancels itself.
        propensity = interactions["propensity"].to_numpy()[usable]
        policies[0] = _PolicyOnLog(propensity, q_logged, (1.0, 1.0), 0.0)
    return _Replay(usable, q_logged, apart, (policies[0], policies[1]))


def _ask(asked: _Asked, interactions: pl.DataFrame) -> _Answered:
    """Ask both policies about some rows."""
    n = len(interactions)
    usable, q_logged = np.zeros(n, dtype=np.bool_), np.zeros(n)
    probability, q_target = np.zeros((2, n)), np.zeros((2, n))
    largest, explored, deficient = np.ones(2), 0.0, np.zeros(2)
    compared: tuple[list[NDArray[np.float64]], ...] = ([], [])
    logged_pmfs, stands_for = interactions["pmf"], 1.0 / interactions["keep_prob"].to_numpy()
    for row, request in enumerate(logged_requests(interactions)):
        answers = _answers(asked.champion, asked.challenger, request)
        if answers is None:
            continue
        pmfs, scores = answers
        logged = logged_pmfs[row]
        possible = None if logged is None else logged.to_numpy()
        if possible is not None:
            unseen = np.array([pmf[possible <= 0.0].sum() for pmf in pmfs])
            if np.count_nonzero(possible > 0.0) > 1:
                explored += stands_for[row]
                deficient += stands_for[row] * unseen
            if unseen.max() > UNSEEN:
                continue
        usable[row] = True
        model = np.clip(scores, *asked.reward_range)
        q_logged[row] = model[request.chosen]
        for side, pmf in enumerate(pmfs):
            compared[side].append(pmf)
            probability[side, row] = pmf[request.chosen]
            q_target[side, row] = pmf @ model
            largest[side] = max(largest[side], largest_weight(pmf, possible))
    apart = np.zeros((3, n))
    apart[:, usable] = distances(*compared)
    return _Answered(usable, q_logged, probability, q_target, apart, largest, explored, deficient)


def _answers(
    champion: Generation | None, challenger: Generation, request: LoggedRequest
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]] | None:
    """Both policies' pmfs and the challenger's scores; None if the request can't be encoded.

    Scorers refuse such a request as soon as they serve an oracle; the cold start asks none.
    """
    asked = (request.context, request.actions, request.eligible, request.baseline)
    try:
        target, scores = challenger.pmf(*asked)
        other = target if champion is None else champion.pmf(*asked)[0]
        pmfs = [of_the_row(each, request) for each in (other, target)]
    except InvalidInputError:
        return None
    return pmfs, np.zeros(len(target)) if scores is None else scores


def of_the_row(pmf: NDArray[np.float64], request: LoggedRequest) -> NDArray[np.float64]:
    """Probability of every action to be what the row logs, for a policy with this pmf.

    A place of a slate holds an action with its inclusion probability over the number of places.
    """
    size = request.slate_size
    return pmf if size is None else inclusion(pmf, size, request.eligible) / size


def reward_range_of(interactions: pl.DataFrame, config: LoopConfig) -> tuple[float, float]:
    """The loop's range of rewards, widened to those that are there."""
    rewards = interactions["reward"].to_numpy()
    return (
        min(config.reward_min, float(rewards.min())),
        max(config.reward_max, float(rewards.max())),
    )


def _require_rows(rows: int, left_out: int) -> None:
    if rows < MIN_ROWS:
        besides = f", besides {left_out} that say nothing about the policies" if left_out else ""
        raise NotEnoughDataError(
            f"an evaluation needs at least {MIN_ROWS} judged interactions, got {rows}{besides}"
        )


def largest_weight(target: NDArray[np.float64], possible: NDArray[np.float64] | None) -> float:
    """Largest weight that another draw from the logged pmf could have had."""
    if possible is None:
        return np.inf
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


def _support(batch: LoggedBatch, policy: _PolicyOnLog) -> WeightDiagnostics:
    found = WeightMonitor().add(batch.weight, keep_prob=batch.keep_prob).result()
    return msgspec.structs.replace(found, deficient=policy.deficient)


def _bound(batch: LoggedBatch, policy: _PolicyOnLog) -> float | None:
    largest = policy.weight_range[1] * float(batch.keep_weight.max()) / batch.keep_weight.mean()
    return float(largest) if np.isfinite(largest) else None


def _name(generation: Generation) -> str:
    return f"generation {generation.number}"
