"""What a simulator has to offer for a policy to be trained in it.

An environment is a pytree of parameters with pure functions, so that any of them, the LTS benchmark
or simulators learned from a log, runs inside the one compiled training loop. Everything is
vectorised over S simulators and the U users of each.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Final, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

__all__ = ("Environment", "Key", "Past", "State", "key_of", "numbers_of", "restored")

Key: TypeAlias = jax.Array
"""A key of :mod:`jax.random`."""

State: TypeAlias = Any
"""An environment's own pytree: where every user of every simulator stands."""


_GENERATOR: Final = "rbg"
"""XLA's own generator: JAX's default one takes twice as long to compile, at each of its uses."""


def key_of(*seed: int) -> Key:
    """The key of a seed, or of a part of one."""
    (number,) = np.random.SeedSequence(seed).generate_state(1)
    return jax.random.key(int(number), impl=_GENERATOR)


def numbers_of(key: Key) -> jax.Array:
    """A key as plain numbers, which a file can hold."""
    return jax.random.key_data(key)


def restored(numbers: jax.Array) -> Key:
    """The key of which these are the numbers."""
    key: Key = jax.random.wrap_key_data(numbers, impl=_GENERATOR)
    return key


class Past(NamedTuple):
    """What had happened in the sessions of users before an episode meets them.

    Attributes
    ----------
    observation
        Before each of the first P steps, shape (S, U, P, F), P at least 1.
    action
        What was done then, integers of shape (S, U, P).
    steps
        How many of them come before the episode, integers in [0, P], shape (S, U).
    """

    observation: jax.Array
    action: jax.Array
    steps: jax.Array

    @property
    def previous(self) -> jax.Array:
        """What was done last, shape (S, U); -1 if nothing was."""
        last = jnp.maximum(self.steps - 1, 0)[..., None]
        found = jnp.take_along_axis(self.action, last, axis=-1)[..., 0]
        return jnp.where(self.steps > 0, found, -1)


class Environment(eqx.Module):
    """S simulators with U users each, all stepped together.

    An episode may be a part of a session. What comes after it counts then, and users may have a
    past; the session ends where no step of it is left.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Number of simulators S and of users U."""

    @property
    @abstractmethod
    def horizon(self) -> int:
        """Steps of an episode, at least 1."""

    @property
    def session(self) -> int:
        """Steps of a session, at least those of an episode."""
        return self.horizon

    def past(self) -> Past | None:
        """What comes before an episode; None if sessions begin with it."""
        return None

    @property
    @abstractmethod
    def actions(self) -> int:
        """Number of actions D, at least 2."""

    @property
    @abstractmethod
    def observations(self) -> int:
        """Number of columns F of an observation."""

    @property
    @abstractmethod
    def secrets(self) -> int:
        """Number of columns P of what a simulator knows."""

    @abstractmethod
    def take_users(self, key: Key, users: int) -> Environment:
        """The same simulators with `users` of the users, drawn without replacement."""

    @abstractmethod
    def take_simulators(self, simulators: list[int]) -> Environment:
        """The simulators at these places, with their users."""

    @abstractmethod
    def reset(self, key: Key) -> tuple[State, jax.Array]:
        """Start an episode.

        Returns
        -------
        state
            Where the users stand.
        observation
            What a policy sees of it, shape (S, U, F).
        """

    @abstractmethod
    def step(self, key: Key, state: State, action: jax.Array) -> tuple[State, jax.Array, jax.Array]:
        """Act on every user.

        Parameters
        ----------
        key
            Randomness of the step.
        state
            Where the users stand.
        action
            Place of the action chosen for each user, integers in [0, D - 1], shape (S, U).

        Returns
        -------
        state, observation
            As of :meth:`reset`.
        reward
            Shape (S, U).
        """

    @abstractmethod
    def secret(self, state: State) -> jax.Array:
        """What a simulator knows and a policy doesn't, for the critic, shape (S, U, P)."""

    @abstractmethod
    def group_items(self, observation: jax.Array) -> jax.Array:
        """What is seen first says of the group of each simulator, shape (S, U, I).

        Parameters
        ----------
        observation
            Of :meth:`reset`.
        """
