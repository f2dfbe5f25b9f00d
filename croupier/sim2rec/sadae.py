"""The state-action distribution auto-encoder: what group is this, by what its users do?

Each member of a group is seen a little; together they tell which group it is. The encoder makes a
normal distribution over the code of each member, their product is that of the group, and the
decoder tells from the code how the group's members are distributed.

Source: Chen et al., 2023 (arXiv 2305.04832), the SADAE: ``E_q(v|X)[sum_i log p(s_i|v) +
log p(a_i|s_i, v)] - KL(q(v|X) || N(0, I))``, ``q(v|X)`` being the normalised product of
``q(v|x_i)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from croupier.policy.errors import InvalidInputError
from croupier.sim2rec.environment import key_of
from croupier.sim2rec.networks import Perceptron, Scaling

if TYPE_CHECKING:
    from collections.abc import Iterator

    from croupier.sim2rec.environment import Environment, Key
    from croupier.sim2rec.learning_config import SADAEConfig

__all__ = ("SADAE", "Fit", "GroupCode", "blank_sadae", "elbo", "fit_sadae")

_SMALLEST = 1e-3
"""Standard deviations are at least this."""


class GroupCode(NamedTuple):
    """A normal distribution over codes, shape (..., C) each."""

    mean: jax.Array
    deviation: jax.Array


class SADAE(eqx.Module):
    """Encoder and decoder.

    Attributes
    ----------
    config
        Its shape.
    """

    scaling: Scaling
    encoder: Perceptron
    state_decoder: Perceptron
    action_decoder: Perceptron | None
    config: SADAEConfig = eqx.field(static=True)

    def __init__(self, config: SADAEConfig, scaling: Scaling, rng: np.random.Generator) -> None:
        self.config, self.scaling = config, scaling
        states = scaling.mean.shape[0]
        hidden = (config.hidden, config.hidden)
        self.encoder = Perceptron((states + config.actions, *hidden, 2 * config.code), rng)
        self.state_decoder = Perceptron((config.code, *hidden, 2 * states), rng)
        self.action_decoder = (
            Perceptron((config.code + states, *hidden, config.actions), rng)
            if config.actions
            else None
        )

    def encode(self, items: jax.Array) -> GroupCode:
        """The distribution of a group's code, of its items, shape (..., N, I)."""
        states, actions = self._parts(items)
        inputs = [states]
        if actions is not None:
            inputs.append(jax.nn.one_hot(actions, self.config.actions))
        location, spread = jnp.split(self.encoder(jnp.concatenate(inputs, -1)), 2, axis=-1)
        precision = 1.0 / (jnp.square(jax.nn.softplus(spread)) + 1e-7)
        together = precision.sum(axis=-2)
        mean = (location * precision).sum(axis=-2) / together
        return GroupCode(mean, 1.0 / jnp.sqrt(together))

    def log_likelihood(self, code: jax.Array, items: jax.Array) -> jax.Array:
        """``log p(s|v) + log p(a|s, v)`` of each item (..., N, I) given the code (..., C)."""
        states, actions = self._parts(items)
        mean, spread = jnp.split(self.state_decoder(code)[..., None, :], 2, axis=-1)
        deviation = jax.nn.softplus(spread) + _SMALLEST
        found = jax.scipy.stats.norm.logpdf(states, mean, deviation).sum(axis=-1)
        if self.action_decoder is not None and actions is not None:
            told = jnp.broadcast_to(code[..., None, :], (*states.shape[:-1], code.shape[-1]))
            scores = jax.nn.log_softmax(
                self.action_decoder(jnp.concatenate([told, states], axis=-1))
            )
            found += jnp.take_along_axis(scores, actions[..., None], axis=-1)[..., 0]
        return found

    def _parts(self, items: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        if not self.config.actions:
            return self.scaling(items), None
        return self.scaling(items[..., :-1]), items[..., -1].astype(jnp.int32)


def elbo(sadae: SADAE, items: jax.Array, noise: jax.Array) -> jax.Array:
    """Evidence lower bound of groups, divided by their size.

    Parameters
    ----------
    sadae
        The auto-encoder.
    items
        N members of each of S groups, shape (S, N, I).
    noise
        Standard normal draws, shape (S, C).

    Returns
    -------
    bound
        In nats for each member of a group, shape (S,), of the scaled states.
    """
    found = sadae.encode(items)
    code = found.mean + found.deviation * noise
    variance = jnp.square(found.deviation)
    divergence = 0.5 * (variance + jnp.square(found.mean) - 1.0 - jnp.log(variance)).sum(axis=-1)
    return sadae.log_likelihood(code, items).mean(axis=-1) - divergence / items.shape[-2]


class Fit(NamedTuple):
    """A fitted auto-encoder and how it was chosen.

    Attributes
    ----------
    sadae
        Fitted to all groups, with as many steps as told the groups held out best.
    steps
        These.
    fitted, held_out
        Bounds at each look while some groups were held out, in nats for each member: of the groups
        fitted and of those held out.
    """

    sadae: SADAE
    steps: int
    fitted: list[float]
    held_out: list[float]


def fit_sadae(config: SADAEConfig, environment: Environment, held_out: list[int], seed: int) -> Fit:
    """Fit an auto-encoder to the groups of training simulators.

    How many steps are enough is told by groups that are held out; then all of them are fitted.

    Parameters
    ----------
    config
        How.
    environment
        S training simulators; what policies are tested on has no part in it.
    held_out
        Places of the simulators that choose the steps, at least one and not all.
    seed
        Everything random, at least 0.

    Raises
    ------
    InvalidInputError
        If no simulator is held out, or none is left.
    """
    kept = [each for each in range(environment.shape[0]) if each not in set(held_out)]
    if not held_out or not kept:
        raise InvalidInputError(
            "held_out", f"expected some of {environment.shape[0]} simulators, not all"
        )
    judges = environment.take_simulators(held_out)
    ours: list[float] = []
    theirs: list[float] = []
    for sadae, bound in _fits(config, environment.take_simulators(kept), config.steps, seed):
        ours.append(bound)
        theirs.append(float(_judge(sadae, judges, key_of(seed, 0))))
    steps = config.every * (1 + max(range(len(theirs)), key=theirs.__getitem__))
    *_, (chosen, _) = _fits(config, environment, steps, seed)
    return Fit(chosen, steps, ours, theirs)


def blank_sadae(config: SADAEConfig, environment: Environment, seed: int) -> SADAE:
    """An auto-encoder that has learned nothing but the scales of the environment's items."""
    scaling = _scaling(environment, key_of(seed, 1), actions=bool(config.actions))
    return SADAE(config, scaling, np.random.default_rng(seed))


@eqx.filter_jit
def _scaling(environment: Environment, key: Key, *, actions: bool) -> Scaling:
    items = _items(environment, key)
    return Scaling.of(items[..., :-1] if actions else items)


def _fits(
    config: SADAEConfig, environment: Environment, steps: int, seed: int
) -> Iterator[tuple[SADAE, float]]:
    """The auto-encoder after every few steps, and the bound on the way there."""
    sadae = blank_sadae(config, environment, seed)
    state = _optimiser(config).init(eqx.filter(sadae, eqx.is_array))
    for part in range(steps // config.every):
        sadae, state, bound = _fit_steps(sadae, state, environment, key_of(seed, 2, part))
        yield sadae, float(bound)


def _items(environment: Environment, key: Key) -> jax.Array:
    return environment.group_items(environment.reset(key)[1])


@eqx.filter_jit
def _fit_steps(
    sadae: SADAE, state: optax.OptState, environment: Environment, key: Key
) -> tuple[SADAE, optax.OptState, jax.Array]:
    config = sadae.config
    optimiser = _optimiser(config)
    users = min(config.users, environment.shape[1])

    def step(carry, key):  # type: ignore[no-untyped-def]
        sadae, state = eqx.combine(carry, rest)
        users_key, reset_key, code_key = jax.random.split(key, 3)
        items = _items(environment.take_users(users_key, users), reset_key)
        noise = jax.random.normal(code_key, (items.shape[0], config.code))

        def loss(sadae: SADAE) -> jax.Array:
            return -elbo(sadae, items, noise).mean()

        value, gradient = eqx.filter_value_and_grad(loss)(sadae)
        moved, state = optimiser.update(gradient, state)
        return eqx.filter((eqx.apply_updates(sadae, moved), state), eqx.is_array), -value

    arrays, rest = eqx.partition((sadae, state), eqx.is_array)
    arrays, bounds = jax.lax.scan(step, arrays, jax.random.split(key, config.every))
    sadae, state = eqx.combine(arrays, rest)
    return sadae, state, bounds.mean()


def _optimiser(config: SADAEConfig) -> optax.GradientTransformation:
    return optax.flatten(optax.adam(config.rate))


@eqx.filter_jit
def _judge(sadae: SADAE, environment: Environment, key: Key) -> jax.Array:
    """The bound of every simulator's users in parts of the size that is fitted, averaged."""
    reset_key, code_key = jax.random.split(key)
    items = _items(environment, reset_key)
    users = min(sadae.config.users, items.shape[1])
    parts = items.shape[1] // users
    items = items[:, : parts * users].reshape(-1, users, items.shape[-1])
    noise = jax.random.normal(code_key, (items.shape[0], sadae.config.code))
    return elbo(sadae, items, noise).mean()
