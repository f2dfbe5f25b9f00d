"""An environment whose optimum is known in closed form, met from the beginning or on the way."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from croupier.sim2rec.environment import Environment, Key, Past

HARVEST, PLANT = 0, 1
SESSION = 6


class Orchard(Environment):
    """Harvesting earns as many as there are trees, planting earns nothing and adds a tree.

    With L trees and n steps left, k more trees earn ``(L + k) (n - k)``: planting is best where
    ``n - L > 1``, harvesting where ``n - L < 1``. From no tree on, six steps earn 9 at most.
    """

    trees: jax.Array
    before: Past | None
    steps: int

    @property
    def shape(self) -> tuple[int, int]:
        simulators, users = self.trees.shape
        return simulators, users

    @property
    def horizon(self) -> int:
        return self.steps

    @property
    def session(self) -> int:
        return SESSION

    def past(self) -> Past | None:
        return self.before

    @property
    def actions(self) -> int:
        return 2

    @property
    def observations(self) -> int:
        return 1

    @property
    def secrets(self) -> int:
        return 1

    def take_users(self, key: Key, users: int) -> Orchard:
        chosen = jax.random.permutation(key, self.shape[1])[:users]
        before = None
        if self.before is not None:
            before = Past(*(each[:, chosen] for each in self.before))
        return Orchard(self.trees[:, chosen], before, self.steps)

    def take_simulators(self, simulators: list[int]) -> Orchard:
        raise NotImplementedError

    def reset(self, key: Key) -> tuple[jax.Array, jax.Array]:
        del key
        return self.trees, self.trees[..., None]

    def step(
        self, key: Key, state: jax.Array, action: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        del key
        reward = jnp.where(action == HARVEST, state, 0.0)
        after = state + action
        return after, after[..., None], reward

    def secret(self, state: jax.Array) -> jax.Array:
        return state[..., None]

    def group_items(self, observation: jax.Array) -> jax.Array:
        return observation


def orchard(users: int, steps: int) -> Orchard:
    """Whose episodes are whole sessions, or begin after some steps of which half planted."""
    if steps == SESSION:
        return Orchard(jnp.zeros((1, users)), None, steps)
    rng = np.random.default_rng(7)
    most = SESSION - steps
    planted = rng.integers(0, 2, (1, users, most))
    grown = planted.cumsum(axis=-1)
    met = rng.integers(0, most + 1, (1, users))
    trees = np.concatenate([np.zeros((1, users, 1)), grown], axis=-1)
    past = Past(
        jnp.asarray(trees[..., :most, None], jnp.float32),
        jnp.asarray(planted),
        jnp.asarray(met),
    )
    now = np.take_along_axis(trees, met[..., None], axis=-1)[..., 0]
    return Orchard(jnp.asarray(now, jnp.float32), past, steps)
