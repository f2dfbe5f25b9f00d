"""A hidden population: users of several groups, whom no simulator knows.

What a policy is worth to them can be measured, as nowhere else, by letting it answer them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np

from croupier.sim2rec.lts import LTSEnvironment, LTSNoise, UserPopulation
from croupier.sim2rec.study import optimal_documents

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from croupier.sim2rec.log_study_config import LogWorldConfig

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]

__all__ = ("Answering", "Crowd", "Planned", "best_constant", "optimum", "play_crowd")

# Exposures in the grid of a user's optimum: with them it is within 0.02% of that of 401.
_GRID_POINTS = 101


class Crowd:
    """Users of all groups, everyone in the same step of a session.

    Parameters
    ----------
    config
        What they are like.
    users
        Of each group.
    rng
        Of who they are.
    """

    def __init__(self, config: LogWorldConfig, users: int, rng: np.random.Generator) -> None:
        self.config = config
        self.group = np.repeat(np.arange(len(config.groups)), users)
        self._groups = [
            LTSEnvironment(config.environment(mu_c), UserPopulation.draw(users, rng))
            for mu_c in config.groups
        ]

    def __len__(self) -> int:
        return len(self.group)

    def reset(self, rng: np.random.Generator) -> FloatArray:
        """Begin a session of everyone; gives observations, shape (n, 3)."""
        return np.concatenate([each.reset(rng) for each in self._groups])

    def show(self, shown: IntArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Show everyone a document; gives observations, shape (n, 3), and rewards, shape (n,)."""
        done = [
            each.show(own, LTSNoise.draw(len(own), rng))
            for each, own in zip(self._groups, np.split(shown, len(self._groups)), strict=True)
        ]
        return (
            np.concatenate([each.observation for each in done]),
            np.concatenate([each.reward for each in done]),
        )

    def best_documents(self) -> IntArray:
        """The best sequence for everyone in the session that has begun, shape (T, n).

        Of somebody who knows all of a user, what kale is worth to them in this session included.
        """
        plans = [
            optimal_documents(
                msgspec.structs.replace(each.config, mu_k=float(kale), kale_noise=0.0),
                each.users.take([i]),
                grid_points=_GRID_POINTS,
            )
            for each in self._groups
            for i, kale in enumerate(each.state.kale_mean)
        ]
        return np.concatenate(plans, axis=1)


class Answering(Protocol):
    """A policy that answers everyone at once, step by step."""

    def begin(self, crowd: Crowd) -> None:
        """A session begins."""

    def choose(self, observation: FloatArray, draws: FloatArray) -> IntArray:
        """Documents, shape (n,), of observations (n, 3) and uniform draws (n,)."""


class Planned:
    """Shows what was planned: documents that broadcast to shape (T, n)."""

    def __init__(self, documents: IntArray | int) -> None:
        self._documents = np.asarray(documents, dtype=np.int64)
        self._step = 0

    def begin(self, crowd: Crowd) -> None:
        """Start with the first step's."""
        self._plan = np.broadcast_to(self._documents, (crowd.config.horizon, len(crowd)))
        self._step = 0

    def choose(self, observation: FloatArray, draws: FloatArray) -> IntArray:
        """Whatever is observed."""
        del observation, draws
        self._step += 1
        shown: IntArray = self._plan[self._step - 1]
        return shown


def play_crowd(crowd: Crowd, policy: Answering, seed: tuple[int, ...]) -> FloatArray:
    """Return of everyone in a session, shape (n,).

    Policies of the same seed meet the same signals, worth of kale, noise and draws, so that they
    can be compared user by user.
    """
    world, draws = np.random.default_rng((*seed, 0)), np.random.default_rng((*seed, 1))
    observation = crowd.reset(world)
    policy.begin(crowd)
    total = np.zeros(len(crowd))
    for _ in range(crowd.config.horizon):
        chosen = policy.choose(observation, draws.random(len(crowd)))
        observation, reward = crowd.show(chosen, world)
        total += reward
    return total


def optimum(crowd: Crowd, seed: tuple[int, ...]) -> FloatArray:
    """Return of everyone in the same session if all were known, shape (n,)."""
    crowd.reset(np.random.default_rng((*seed, 0)))
    return play_crowd(crowd, Planned(crowd.best_documents()), seed)


def best_constant(
    crowd: Crowd, pilot: tuple[int, ...], seed: tuple[int, ...]
) -> tuple[int, FloatArray]:
    """The one document that earns most in a session, and the return of everyone in another one."""
    earned = [
        play_crowd(crowd, Planned(each), pilot).mean() for each in range(crowd.config.documents)
    ]
    best = int(np.argmax(earned))
    return best, play_crowd(crowd, Planned(best), seed)
