"""The Long-Term-Satisfaction environment in JAX: many groups and their users at once.

The dynamics are those of :mod:`croupier.sim2rec.lts`, the reference that they are tested against.
Everything here is a pure function of arrays, so it can be compiled into a training loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from croupier.policy.errors import InvalidInputError
from croupier.sim2rec.environment import Environment, Key
from croupier.sim2rec.lts import MAX_ENGAGEMENT, OBSERVATION_FIELDS, LTSConfig, UserPopulation

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("GroupState", "LTSGroups", "draw_groups")

# What differs between the groups of one environment; all else has to be the same.
_OF_A_GROUP = ("mu_c", "mu_k")


class GroupState(NamedTuple):
    """Where every user stands; :class:`~croupier.sim2rec.lts.LTSState` with groups.

    Attributes
    ----------
    step
        Documents shown since the reset, a scalar.
    exposure, kale_mean, group_signal
        Of each user, shape (S, U).
    """

    step: jax.Array
    exposure: jax.Array
    kale_mean: jax.Array
    group_signal: jax.Array


class LTSGroups(Environment):
    """Groups of users that are shown documents.

    Attributes
    ----------
    memory, sensitivity
        m and h of each user, shape (S, U).
    mu_c, mu_k
        Mean engagement with clickbait and kale in each group, shape (S, 1).
    config
        Everything else.

    See Also
    --------
    croupier.sim2rec.lts : the reference, which explains the parameters.
    """

    memory: jax.Array
    sensitivity: jax.Array
    mu_c: jax.Array
    mu_k: jax.Array
    config: LTSConfig = eqx.field(static=True)

    @property
    def horizon(self) -> int:
        """Documents shown in an episode."""
        return self.config.horizon

    @property
    def actions(self) -> int:
        """Number of documents D."""
        return self.config.documents

    @property
    def shape(self) -> tuple[int, int]:
        """Number of groups S and of users U."""
        groups, users = self.memory.shape
        return groups, users

    @property
    def observations(self) -> int:
        """The three of :data:`~croupier.sim2rec.lts.OBSERVATION_FIELDS`."""
        return len(OBSERVATION_FIELDS)

    @property
    def secrets(self) -> int:
        """The six of :meth:`secret`."""
        return 6

    def take_users(self, key: Key, users: int) -> LTSGroups:
        """The same groups with `users` of the users, drawn without replacement."""
        # Users stand in no order, so a block from a random place on will do, and is cheap.
        place = jax.random.uniform(key, (self.shape[0], 1))
        first = (place * self.shape[1]).astype(jnp.int32)
        chosen = (first + jnp.arange(users)) % self.shape[1]
        return self._with_users(
            jnp.take_along_axis(self.memory, chosen, axis=1),
            jnp.take_along_axis(self.sensitivity, chosen, axis=1),
        )

    def take_simulators(self, simulators: list[int]) -> LTSGroups:
        """The groups at these places, with their users."""
        chosen = np.asarray(simulators)
        return LTSGroups(
            memory=self.memory[chosen],
            sensitivity=self.sensitivity[chosen],
            mu_c=self.mu_c[chosen],
            mu_k=self.mu_k[chosen],
            config=self.config,
        )

    def reset(self, key: Key) -> tuple[GroupState, jax.Array]:
        """Start an episode, see :func:`croupier.sim2rec.lts.initial_state`."""
        kale, signal = jax.random.split(key)
        kale_noise = jnp.zeros(self.shape)
        if self.config.kale_noise:
            kale_noise = jax.random.uniform(kale, self.shape, minval=-1.0, maxval=1.0)
        return self.start(kale_noise, jax.random.normal(signal, self.shape))

    def start(self, kale_noise: jax.Array, signal_noise: jax.Array) -> tuple[GroupState, jax.Array]:
        """Start an episode with these draws, uniform in [-1, 1] and normal, shape (S, U) each."""
        kale_mean = self.mu_k + self.config.kale_noise * kale_noise
        state = GroupState(
            step=jnp.zeros((), jnp.int32),
            exposure=0.5 / (1.0 - self.memory),
            kale_mean=jnp.clip(kale_mean, 0.0, MAX_ENGAGEMENT),
            group_signal=self.mu_c + self.config.signal_sd * signal_noise,
        )
        nothing = jnp.zeros_like(state.exposure)
        return state, jnp.stack([state.group_signal, nothing, nothing], axis=-1)

    def step(
        self, key: Key, state: GroupState, action: jax.Array
    ) -> tuple[GroupState, jax.Array, jax.Array]:
        """Show every user a document, see :func:`croupier.sim2rec.lts.transition`."""
        # Draws that a scale of 0 would remove are most of the cost of a step.
        engagement, innovation = (
            jax.random.normal(each, self.shape) if scale else jnp.zeros(self.shape)
            for each, scale in zip(
                jax.random.split(key),
                (self.config.sd_c or self.config.sd_k, self.config.innovation_sd),
                strict=True,
            )
        )
        return self.show(state, action, engagement, innovation)

    def show(
        self, state: GroupState, shown: jax.Array, engagement: jax.Array, innovation: jax.Array
    ) -> tuple[GroupState, jax.Array, jax.Array]:
        """Show every user a document, with these standard normal draws, shape (S, U) each."""
        config = self.config
        clickbait = shown / config.documents
        mean = (clickbait * self.mu_c + (1.0 - clickbait) * state.kale_mean) * self.satisfaction(
            state
        )
        sd = clickbait * config.sd_c + (1.0 - clickbait) * config.sd_k
        reward = mean + sd * engagement
        exposure = self.memory * state.exposure - 2.0 * (clickbait - 0.5)
        after = state._replace(
            step=state.step + 1, exposure=exposure + config.innovation_sd * innovation
        )
        seen = jnp.clip(reward, 0.0, MAX_ENGAGEMENT)
        observation = jnp.stack([state.group_signal, jnp.ones_like(seen), seen], axis=-1)
        return after, observation, reward

    def satisfaction(self, state: GroupState) -> jax.Array:
        """``SAT = sigmoid(h NPE)`` of each user, shape (S, U)."""
        return jax.nn.sigmoid(self.sensitivity * state.exposure)

    def secret(self, state: GroupState) -> jax.Array:
        """Columns m, h, NPE, SAT, mu_c and mu_k of each user, shape (S, U, 6)."""
        columns = (
            self.memory,
            self.sensitivity,
            state.exposure,
            self.satisfaction(state),
            jnp.broadcast_to(self.mu_c, self.shape),
            state.kale_mean,
        )
        return jnp.stack(columns, axis=-1)

    def group_items(self, observation: jax.Array) -> jax.Array:
        """The signal of each user, shape (S, U, 1)."""
        return observation[..., :1]

    def _with_users(self, memory: jax.Array, sensitivity: jax.Array) -> LTSGroups:
        return LTSGroups(
            memory=memory,
            sensitivity=sensitivity,
            mu_c=self.mu_c,
            mu_k=self.mu_k,
            config=self.config,
        )


def draw_groups(configs: Sequence[LTSConfig], populations: Sequence[UserPopulation]) -> LTSGroups:
    """Put groups into one environment.

    Parameters
    ----------
    configs
        Of the S groups, at least one; they may differ in `mu_c` and `mu_k` alone.
    populations
        The users of each group, as many in all of them.

    Raises
    ------
    InvalidInputError
        If groups differ in anything else.
    """
    if not configs:
        raise InvalidInputError("configs", "expected at least one group")
    if len(configs) != len(populations):
        raise InvalidInputError(
            "populations", f"expected one per group ({len(configs)}), got {len(populations)}"
        )
    for index, config in enumerate(configs):
        for field in config.__struct_fields__:
            if field not in _OF_A_GROUP and getattr(config, field) != getattr(configs[0], field):
                raise InvalidInputError(
                    f"configs[{index}].{field}", "expected the same value in all groups"
                )
    if len({len(users) for users in populations}) != 1:
        raise InvalidInputError("populations", "expected as many users in all groups")
    return LTSGroups(
        memory=jnp.asarray(np.stack([users.memory for users in populations])),
        sensitivity=jnp.asarray(np.stack([users.sensitivity for users in populations])),
        mu_c=jnp.asarray([[config.mu_c] for config in configs]),
        mu_k=jnp.asarray([[config.mu_k] for config in configs]),
        config=configs[0],
    )
