"""The policy: recurrent or not, over discrete actions, with an exact pmf."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from croupier.policy.recurrent import SPREADS
from croupier.sim2rec.networks import Perceptron, Recurrent, Scaling

if TYPE_CHECKING:
    import numpy as np

    from croupier.sim2rec.learning_config import ActorConfig

__all__ = ("Actor", "Seen", "draw_action", "probability_of")


class Seen(NamedTuple):
    """What a policy is told at a step.

    Attributes
    ----------
    observation
        Shape (..., F).
    previous
        Place of the action before, integers of shape (...); -1 at the first step.
    left
        Share of the session that is left, in (0, 1], of a shape that broadcasts to (...).
    code
        The group's code, of a shape that broadcasts to (..., C).
    """

    observation: jax.Array
    previous: jax.Array
    left: jax.Array
    code: jax.Array


class Actor(eqx.Module):
    """Perceptron, recurrent state, perceptron, pmf; the second also sees the input again."""

    scaling: Scaling
    before: Perceptron
    recurrent: Recurrent | None
    after: Perceptron
    actions: int = eqx.field(static=True)
    config: ActorConfig = eqx.field(static=True)

    def __init__(
        self,
        config: ActorConfig,
        actions: int,
        scaling: Scaling,
        rng: np.random.Generator,
    ) -> None:
        self.config, self.actions = config, actions
        self.scaling = scaling
        inputs = len(config.sees) + 1 + config.code + 2
        self.before = Perceptron((inputs, config.hidden, config.hidden), rng)
        self.recurrent = Recurrent(config.hidden, config.memory, rng) if config.memory else None
        outputs = 2 if config.head == "ordered" else actions
        self.after = Perceptron(
            (inputs + (config.memory or config.hidden), config.hidden, outputs),
            rng,
            gain=0.01,
        )

    def first_state(self, shape: tuple[int, ...]) -> jax.Array:
        """The state before anything was seen, shape ``(*shape, H)``."""
        return jnp.zeros((*shape, self.config.memory))

    def step(self, state: jax.Array, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """The state after what is seen now, and the pmf, shape (..., D)."""
        inputs = self._inputs(seen)
        hidden = self._before(inputs)
        if self.recurrent is not None:
            hidden = state = self.recurrent.step(state, self.recurrent.inputs(hidden))
        return state, self._pmf(inputs, hidden)

    def pmfs(self, seen: Seen, state: jax.Array | None = None) -> jax.Array:
        """The pmf at every step of episodes, shape (T, ..., D), of what is seen in them.

        They go on from a state (..., H), and begin sessions without one.
        """
        inputs = self._inputs(seen)
        hidden = self._before(inputs)
        if self.recurrent is not None:
            start = self.first_state(hidden.shape[1:-1]) if state is None else state
            hidden = self.recurrent(hidden, start)
        return self._pmf(inputs, hidden)

    def states(self, seen: Seen) -> jax.Array:
        """The state before each step of sessions and after the last, shape (T + 1, ..., H)."""
        hidden = self._before(self._inputs(seen))
        first = self.first_state(hidden.shape[1:-1])
        if self.recurrent is None:
            return jnp.broadcast_to(first, (len(hidden) + 1, *first.shape))
        return jnp.concatenate([first[None], self.recurrent(hidden, first)])

    def _inputs(self, seen: Seen) -> jax.Array:
        columns = self.scaling(seen.observation)[..., jnp.asarray(self.config.sees)]
        shape = columns.shape[:-1]
        parts = [columns, jnp.broadcast_to(2.0 * seen.left - 1.0, shape)[..., None]]
        if self.config.code:
            parts.append(jnp.broadcast_to(seen.code, (*shape, self.config.code)))
        place = 2.0 * seen.previous / (self.actions - 1) - 1.0
        first = seen.previous < 0
        parts.append(jnp.stack([jnp.where(first, 0.0, place), first.astype(place.dtype)], -1))
        return jnp.concatenate(parts, axis=-1)

    def _before(self, inputs: jax.Array) -> jax.Array:
        return jnp.tanh(self.before(inputs))

    def _pmf(self, inputs: jax.Array, hidden: jax.Array) -> jax.Array:
        outputs = self.after(jnp.concatenate([inputs, hidden], axis=-1))
        if self.config.head == "ordered":
            narrowest, first = SPREADS
            centre = (self.actions - 1) * jax.nn.sigmoid(4.0 * outputs[..., :1])
            spread = narrowest + first * self.actions * jnp.exp(4.0 * outputs[..., 1:])
            scores = -0.5 * ((jnp.arange(self.actions) - centre) / spread) ** 2
        else:
            scores = outputs
        floor = self.config.floor
        return (1.0 - floor) * jax.nn.softmax(scores) + floor / self.actions


def draw_action(pmf: jax.Array, uniform: jax.Array) -> jax.Array:
    """The action whose share of [0, 1) holds `uniform`, shape (...), of a pmf (..., D)."""
    actions = pmf.shape[-1]
    # A product with a triangle of ones is many times faster on a CPU than a cumulative sum; of full
    # precision, since a GPU would otherwise round it and draw with other probabilities.
    triangle = jnp.triu(jnp.ones((actions, actions)))
    below = jnp.matmul(pmf, triangle, precision="highest") <= uniform[..., None]
    return jnp.minimum(below.sum(axis=-1), actions - 1)


def probability_of(pmf: jax.Array, action: jax.Array) -> jax.Array:
    """The probability of an action, shape (...), in a pmf (..., D)."""
    # Unlike a gather, its gradient needs no scatter.
    return jnp.where(jnp.arange(pmf.shape[-1]) == action[..., None], pmf, 0.0).sum(axis=-1)
