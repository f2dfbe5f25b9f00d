"""Sessions of LTS users as arrays, drawn at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from croupier.offline.sessions import LoggedSessions
from croupier.sim2rec.lts import LTSConfig, LTSEnvironment, UserPopulation

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

DOCUMENTS = (0, 7, 15, 22, 29)
SCORES = tuple(each / 30 for each in DOCUMENTS)


def uniform_sessions(
    users: int,
    steps: int,
    seed: int,
    *,
    reward: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda seen: seen,
) -> LoggedSessions:
    """Every user is shown one of five documents at a time, drawn uniformly.

    `reward` makes of the engagement what the log has as reward.
    """
    rng = np.random.default_rng(seed)
    environment = LTSEnvironment(LTSConfig(horizon=steps), UserPopulation.draw(users, rng))
    shape, k = (users, steps), len(DOCUMENTS)
    seen = environment.reset(rng)
    state, rewards = np.zeros((*shape, 2)), np.zeros(shape)
    action = rng.integers(k, size=shape)
    for step in range(steps):
        state[:, step] = seen[:, [0, 2]]
        done = environment.show(np.array(DOCUMENTS)[action[:, step]])
        seen, rewards[:, step] = done.observation, reward(done.reward)
    return LoggedSessions(
        interactions=pl.DataFrame(),
        row=np.arange(users * steps).reshape(shape),
        steps=np.full(users, steps),
        user=np.array([f"u{i}" for i in range(users)]),
        group=np.zeros(users, dtype=np.int64),
        groups=("",),
        actions=tuple(f"d{each}" for each in DOCUMENTS),
        state=state,
        action=action,
        eligible=np.ones((*shape, k), dtype=np.bool_),
        propensity=np.full(shape, 1.0 / k),
        reward=rewards,
    )
