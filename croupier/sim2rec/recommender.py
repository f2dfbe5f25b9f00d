"""The supervised recommender: shows what it expects to earn most now, and knows no later.

It is the yardstick of methods that look ahead: a regression of the engagement on what is seen and
what is shown, learned from uniformly random documents in the training simulators, used greedily.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from croupier.sim2rec.lts import LTSEnvironment, UserPopulation, clickbait_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from croupier.sim2rec.lts import FloatArray, LTSConfig

__all__ = ("myopic_returns",)

_LOGGED_ROWS: Final = 50_000


def myopic_returns(
    groups: Sequence[LTSConfig], test: LTSConfig, users: UserPopulation, rng: np.random.Generator
) -> FloatArray:
    """Train a recommender in simulators and play an episode of the test group with it.

    Parameters
    ----------
    groups
        The training simulators, at least one.
    test
        The group it is tested in.
    users
        The n users of that group.
    rng
        Of users, documents and noise.

    Returns
    -------
    returns
        Engagement summed over the horizon, not discounted, shape (n,).
    """
    from sklearn.ensemble import HistGradientBoostingRegressor  # noqa: PLC0415 - slow to import

    each = max(2, _LOGGED_ROWS // (len(groups) * test.horizon))
    logs = [_log(group, each, rng) for group in groups]
    model = HistGradientBoostingRegressor(random_state=0)
    model.fit(np.concatenate([x for x, _ in logs]), np.concatenate([y for _, y in logs]))
    environment = LTSEnvironment(test, users)
    observation = environment.reset(rng)
    scores = clickbait_scores(test.documents)
    total = np.zeros(len(users))
    for _ in range(test.horizon):
        offered = np.column_stack(
            [np.repeat(observation, test.documents, axis=0), np.tile(scores, len(users))]
        )
        expected = model.predict(offered).reshape(len(users), test.documents)
        step = environment.show(expected.argmax(axis=1))
        observation = step.observation
        total += step.reward
    return total


def _log(group: LTSConfig, users: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """What was seen and shown, and what it earned, of an episode of random documents."""
    population = UserPopulation.draw(users, rng, log_sample=group.log_sample)
    environment = LTSEnvironment(group, population)
    observation = environment.reset(rng)
    scores = clickbait_scores(group.documents)
    seen, earned = [], []
    for _ in range(group.horizon):
        shown = rng.integers(0, group.documents, users)
        step = environment.show(shown)
        seen.append(np.column_stack([observation, scores[shown]]))
        earned.append(step.reward)
        observation = step.observation
    return np.concatenate(seen), np.concatenate(earned)
