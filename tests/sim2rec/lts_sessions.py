"""A log of sessions of LTS users, every decision a real one, and what policies earn there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from croupier.offline.join import fold_of
from croupier.offline.lake import SCHEMAS
from croupier.offline.sink import decision_row
from croupier.policy.decision import Circumstances, DecisionRequest, decide
from croupier.policy.events import Action
from croupier.policy.sessions import SessionsConfig
from croupier.policy.stepping import decide_step, step_of
from croupier.policy.traffic import Plan
from croupier.sim2rec.lts import LTSConfig, LTSEnvironment, UserPopulation

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from croupier.offline.interactions import LoggedRequest
    from croupier.policy.generation import Generation
    from croupier.policy.sessions import SessionState

MINUTE = 60_000_000
HOUR = 60 * MINUTE
DOCUMENTS = (0, 10, 20, 29)
STEPS = 6

SESSIONS = SessionsConfig(
    user="user.id", pause="20 min", horizon=STEPS, state=("signal", "engagement"), group="city"
)


class LTSSessions:
    """Users of one group who are shown one of four documents at a time, a minute apart."""

    def __init__(self, users: int, seed: int) -> None:
        self.users = users
        self.config = LTSConfig(horizon=STEPS)
        self._population = UserPopulation.draw(users, np.random.default_rng(seed))
        self._seed = seed

    @staticmethod
    def request(user: int, observation: NDArray[np.float64], step: int) -> DecisionRequest:
        """What the application asks."""
        return DecisionRequest(
            actions=[Action(f"d{each}") for each in DOCUMENTS],
            context={
                "user": {"id": user},
                "city": "delft",
                "signal": float(observation[0]),
                "engagement": float(observation[2]) if step else 0.0,
            },
        )

    def log(self, policy: Generation, start_us: int) -> pl.DataFrame:
        """A session of every user, as interactions; a policy that remembers is followed."""
        rng = np.random.default_rng((self._seed, start_us))
        environment = LTSEnvironment(self.config, self._population)
        observation = environment.reset(rng)
        rows: list[dict[str, Any]] = []
        plan = Plan(policy)
        states: list[SessionState | None] = [None] * self.users
        for step in range(STEPS):
            drawn = []
            for user in range(self.users):
                asked = self.request(user, observation[user], step)
                at = Circumstances(f"{start_us}-{user}-{step}", start_us + step * MINUTE + user)
                if policy.recurrent is None:
                    drawn.append(decide(asked, plan, at))
                    continue
                taken = decide_step(asked, plan, at, step_of(at.decision_id, states[user]))
                states[user] = taken.state
                drawn.append(taken.decision)
            done = environment.show([DOCUMENTS[each.chosen] for each in drawn])
            observation = done.observation
            rows += [
                decision_row(each, len(rows) + i)
                | {
                    "reward": float(done.reward[i]),
                    "reward_source": "observed",
                    "outcomes": 1,
                    "delay_s": 0.0,
                    "fold": fold_of(each.decision_id),
                }
                for i, each in enumerate(drawn)
            ]
        return pl.DataFrame(rows, schema=SCHEMAS["interactions"])

    def earns(self, pmf: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> float:
        """Mean return of a policy of the observation, by 20,000 roll-outs."""
        n = 20_000
        rng = np.random.default_rng(self._seed + 1)
        population = self._population.take(rng.integers(self.users, size=n).tolist())
        environment = LTSEnvironment(self.config, population)
        observation = environment.reset(rng)
        total = np.zeros(n)
        for _ in range(STEPS):
            below = pmf(observation).cumsum(axis=1) < rng.random(n)[:, None]
            taken = np.minimum(below.sum(axis=1), len(DOCUMENTS) - 1)
            done = environment.show(np.array(DOCUMENTS)[taken])
            observation = done.observation
            total += done.reward
        return float(total.mean())


def cautious(observation: NDArray[np.float64]) -> NDArray[np.float64]:
    """More clickbait to those who are engaged, as a pmf of every row."""
    engaged = observation[:, 2:3] > 4.0
    more, less = np.array([0.15, 0.2, 0.3, 0.35]), np.array([0.3, 0.3, 0.25, 0.15])
    return np.asarray(np.where(engaged, more, less))


def cautious_policy(request: LoggedRequest) -> NDArray[np.float64]:
    """The same, asked as policies are."""
    pmf: NDArray[np.float64] = cautious(np.array([[0.0, 1.0, request.context["engagement"]]]))[0]
    return pmf
