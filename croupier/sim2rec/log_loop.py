"""A bandit's loop that serves a hidden population, embedded, as it runs in production.

Decisions are drawn and logged with their outcomes, sunk, joined and learned from, night by night.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from croupier.eventlog.log import Record
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.join import join
from croupier.offline.lake import Lake
from croupier.offline.retrain import retrain
from croupier.offline.sink import sink
from croupier.policy.decision import Circumstances, DecisionRequest, decide
from croupier.policy.events import Action, Decision, Outcome
from croupier.policy.exploration import SquareCB
from croupier.policy.generation import Generation, cold_start
from croupier.policy.loop import LoopConfig
from croupier.policy.sessions import SessionsConfig
from croupier.policy.traffic import Plan
from croupier.sim2rec.log_world import Crowd
from croupier.sim2rec.lts import OBSERVATION_FIELDS, clickbait_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from croupier.sim2rec.log_study_config import LogWorldConfig

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]

__all__ = ("LOOP", "GenerationAnswers", "loop_of", "serve_nights")

LOOP: Final = "feed"

_SECOND: Final = 1_000_000
_MINUTE: Final = 60 * _SECOND
_DAY: Final = 24 * 60 * _MINUTE
_BEGINNING_US: Final = 1_700_006_400 * _SECOND
_MOST_ENGAGED: Final = 100.0


def loop_of(world: LogWorldConfig) -> LoopConfig:
    """The configuration of the loop: a bandit that explores by inverse gap weighting."""
    return LoopConfig(
        exploration=SquareCB(gamma_scale=10.0, gamma_exponent=0.0, floor=0.01),
        # Noise makes some rewards of what hardly engages negative.
        reward_min=-_MOST_ENGAGED,
        reward_max=_MOST_ENGAGED,
        sessions=SessionsConfig(
            user="user.id",
            pause="20 min",
            horizon=world.horizon,
            state=OBSERVATION_FIELDS,
            group="city",
        ),
    )


def serve_nights(
    world: LogWorldConfig,
    seed: int,
    directory: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Generation:
    """Let a bandit serve the population, and learn from its log every night.

    Parameters
    ----------
    world
        The hidden population.
    seed
        Of its users, of draws and of training.
    directory
        Where the event log and the lake are; empty.
    progress
        Called with the nights that are over and that there are.

    Returns
    -------
    champion
        The generation that served last; it has learned from everything before.
    """
    config, lake = loop_of(world), Lake(directory / "lake")
    crowd = Crowd(world, world.users, np.random.default_rng((seed, 0)))
    serving = cold_start(LOOP)
    with SqliteEventLog.open(directory / "log") as log:
        for night in range(world.nights):
            if progress is not None:
                progress(night, world.nights)
            begun = _BEGINNING_US + night * _DAY
            log.append([Record.of(each) for each in _events(crowd, serving, seed, night, begun)])
            with lake.lock():
                sink(log, lake)
                join(lake, LOOP, config, begun + _DAY)
            if night + 1 < world.nights:
                serving = retrain(
                    lake,
                    LOOP,
                    config,
                    number=night + 1,
                    parent=night,
                    judge_share=0.0,
                    seed=seed,
                    created_us=begun + _DAY,
                )
    if progress is not None:
        progress(world.nights, world.nights)
    return serving


class GenerationAnswers:
    """A generation as it would be served, to users whom the loop has never met."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    def begin(self, crowd: Crowd) -> None:
        """A session begins."""
        self._cities = _cities(crowd)
        self._actions = _actions(crowd.config.documents)

    def choose(self, observation: FloatArray, draws: FloatArray) -> IntArray:
        """Documents drawn from the generation's pmfs."""
        pmfs = np.stack(
            [
                self._generation.pmf(_context(f"f{i}", city, seen), self._actions)[0]
                for i, (city, seen) in enumerate(zip(self._cities, observation, strict=True))
            ]
        )
        return drawn(pmfs, draws)


def drawn(pmfs: FloatArray, draws: FloatArray) -> IntArray:
    """Of pmfs (n, D) the action whose share of [0, 1) holds each of the draws, shape (n,)."""
    sums = pmfs.cumsum(axis=1)
    below = sums <= draws[:, None] * sums[:, -1:]
    chosen: IntArray = np.minimum(below.sum(axis=1), pmfs.shape[1] - 1)
    return chosen


def _events(
    crowd: Crowd, serving: Generation, seed: int, night: int, begun: int
) -> Iterator[Decision | Outcome]:
    """A session of everyone: what is decided, and what comes of it."""
    world = np.random.default_rng((seed, 1, night))
    observation = crowd.reset(world)
    plan, cities = Plan(serving), _cities(crowd)
    actions = _actions(crowd.config.documents)
    for step in range(crowd.config.horizon):
        decisions = []
        for i, (city, seen) in enumerate(zip(cities, observation, strict=True)):
            request = DecisionRequest(actions=actions, context=_context(f"u{i}", city, seen))
            moment = Circumstances(f"{seed}-{night}-{i}-{step}", begun + step * _MINUTE + i)
            decisions.append(decide(request, plan, moment))
        chosen = np.array([each.chosen for each in decisions])
        observation, reward = crowd.show(chosen, world)
        for decision, earned in zip(decisions, reward, strict=True):
            yield decision
            yield Outcome(
                decision_id=decision.decision_id,
                loop=LOOP,
                outcome_id=decision.decision_id,
                reward=float(earned),
                ts=decision.ts + _SECOND,
            )


def _context(user: str, city: str, seen: FloatArray) -> dict[str, object]:
    """What the application tells: who it is, where, and what was observed."""
    fields = dict(zip(OBSERVATION_FIELDS, seen.tolist(), strict=True))
    return {"user": {"id": user}, "city": city, **fields}


def _actions(documents: int) -> list[Action]:
    scores = clickbait_scores(documents).tolist()
    # Ids sort as scores do: that is the order in which logged sessions have the actions.
    return [Action(f"d{k:02}", {"clickbait": score}) for k, score in enumerate(scores)]


def _cities(crowd: Crowd) -> Sequence[str]:
    return [f"city-{each}" for each in crowd.group]
