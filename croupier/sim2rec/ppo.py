"""Proximal policy optimisation of recurrent policies: environment, policy and update in one loop.

An iteration plays one episode with users of all simulators at once and then improves the policy in
minibatches of whole episodes. The critic sees the simulator's state, which it may, since it is
needed in training alone (Pinto et al., 2018, "Asymmetric actor critic"): it needs no memory of its
own and its advantages have less noise.

An episode ends with the session, or earlier. With a session ends all that could be earned; where an
episode is truncated the critic says what would have come (Pardo et al., 2018, "Time limits in
reinforcement learning"). A policy that meets a user within a session has seen what came before, as
it will have where it is served.

Source: Schulman et al., 2017 (arXiv 1707.06347) for the objective, 2016 (arXiv 1506.02438) for the
advantages; Chen et al., 2023 (arXiv 2305.04832) for the policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from croupier.policy.errors import InvalidInputError
from croupier.sim2rec.actor import Actor, Seen, draw_action, probability_of
from croupier.sim2rec.environment import key_of, numbers_of, restored
from croupier.sim2rec.networks import Perceptron, Scaling

if TYPE_CHECKING:
    from croupier.sim2rec.environment import Environment, Key
    from croupier.sim2rec.learning_config import ActorConfig, PPOConfig
    from croupier.sim2rec.sadae import SADAE

__all__ = ("Critic", "Episode", "Training", "advance", "begin", "play")


class Critic(eqx.Module):
    """The value of a simulator's state: discounted steps left times the mean reward to come."""

    scaling: Scaling
    layers: Perceptron
    reward_mean: jax.Array
    reward_scale: jax.Array
    discount: float = eqx.field(static=True)

    def __call__(self, secret: jax.Array, steps_left: jax.Array, session: int) -> jax.Array:
        """Shape (T, S, U), of secrets (T, S, U, P) and the steps left of a session, (T, S, U)."""
        share = 2.0 * steps_left / session - 1.0
        inputs = jnp.concatenate([self.scaling(secret), share[..., None]], axis=-1)
        mean, scale = jax.lax.stop_gradient((self.reward_mean, self.reward_scale))
        return self.weight(steps_left) * (mean + scale * self.layers(inputs)[..., 0])

    def weight(self, steps_left: jax.Array) -> jax.Array:
        """``sum_{i < n} gamma^i`` of n steps."""
        if self.discount == 1.0:
            return steps_left
        return (1.0 - self.discount**steps_left) / (1.0 - self.discount)


class Training(eqx.Module):
    """A training as it stands; with the environment and the configuration it decides the rest."""

    actor: Actor
    critic: Critic
    optimisers: tuple[optax.OptState, optax.OptState]
    key: jax.Array
    iteration: jax.Array


class Episode(NamedTuple):
    """What happened to all users in an episode.

    Attributes
    ----------
    seen
        What the policy saw at each step, with leading axes (T, S, U).
    action, reward, probability
        What was done, what it earned, and the probability with which it was done: (T, S, U).
    state
        The policy's own before the first step, shape (S, U, H).
    secret
        What the critic sees before each step and after the last, shape (T + 1, S, U, P).
    steps_left
        Of the session at these times, shape (T + 1, S, U); 0 where it is over.
    """

    seen: Seen
    action: jax.Array
    reward: jax.Array
    probability: jax.Array
    state: jax.Array
    secret: jax.Array
    steps_left: jax.Array


def play(
    actor: Actor,
    environment: Environment,
    extractor: SADAE | None,
    key: Key,
    *,
    sampled: bool = False,
) -> Episode:
    """Play an episode with all users.

    Parameters
    ----------
    actor
        The policy.
    environment
        S simulators with U users each.
    extractor
        Tells the code of each group from the first observations of its U users; None for no code.
    key
        Randomness of the environment, of the code and of the actions.
    sampled
        Whether the code is drawn, as in training, or the most probable one.
    """
    horizon, shape = environment.horizon, environment.shape
    keys = jax.random.split(key, horizon + 3)
    state, observation = environment.reset(keys[0])
    code = jnp.zeros((shape[0], 1, 0))
    if extractor is not None:
        found = extractor.encode(environment.group_items(observation))
        drawn = found.deviation * jax.random.normal(keys[1], found.mean.shape)
        code = (found.mean + drawn if sampled else found.mean)[:, None]
    draws = jax.random.uniform(keys[2], (horizon, *shape))
    begun = _begun(actor, environment, code)
    steps_left = environment.session - begun.steps - jnp.arange(horizon + 1)[:, None, None]
    left = steps_left[:-1] / environment.session

    def step(carry, given):  # type: ignore[no-untyped-def]
        state, observation, previous, memory = carry
        draw, noise, remaining = given
        seen = Seen(observation, previous, remaining, code)
        memory, pmf = actor.step(memory, seen)
        action = draw_action(pmf, draw)
        probability = probability_of(pmf, action)
        after, following, reward = environment.step(noise, state, action)
        row = (observation, previous, action, reward, probability, environment.secret(state))
        return (after, following, action, memory), row

    start = (state, observation, begun.previous, begun.memory)
    (ended, *_), rows = jax.lax.scan(step, start, (draws, keys[3:], left))
    observation, previous, action, reward, probability, secret = rows
    seen = Seen(observation, previous, left, code)
    secret = jnp.concatenate([secret, environment.secret(ended)[None]])
    return Episode(seen, action, reward, probability, begun.memory, secret, steps_left)


class _Begun(NamedTuple):
    """Where a policy stands with users when an episode begins: steps, last action and memory."""

    steps: jax.Array
    previous: jax.Array
    memory: jax.Array


def _begun(actor: Actor, environment: Environment, code: jax.Array) -> _Begun:
    shape, past = environment.shape, environment.past()
    if past is None:
        return _Begun(jnp.zeros(shape, jnp.int32), jnp.full(shape, -1), actor.first_state(shape))
    observation, action = (jnp.moveaxis(each, 2, 0) for each in past[:2])
    previous = jnp.concatenate([jnp.full_like(action[:1], -1), action[:-1]])
    steps = jnp.arange(len(action))[:, None, None]
    left = (environment.session - steps) / environment.session
    states = actor.states(Seen(observation, previous, left, code))
    memory = jnp.take_along_axis(states, past.steps[None, ..., None], axis=0)[0]
    return _Begun(past.steps, past.previous, memory)


def begin(
    config: PPOConfig,
    actor: ActorConfig,
    environment: Environment,
    extractor: SADAE | None,
    seed: int,
) -> Training:
    """A training before its first iteration.

    An episode of a policy that knows nothing tells the scales of what is seen and earned.

    Parameters
    ----------
    config, actor
        How and what is trained.
    environment
        S simulators with U users each.
    extractor
        Tells the code of each group; None if the policy is told none.
    seed
        Everything random of the training, at least 0.

    Raises
    ------
    InvalidInputError
        If the extractor's code is not as long as the policy expects, or there are not enough users.
    """
    simulators, users = environment.shape
    told = 0 if extractor is None else extractor.config.code
    if told != actor.code:
        raise InvalidInputError("code", f"expected {actor.code} numbers, got {told}")
    if users_of_each(config, environment) > users:
        raise InvalidInputError(
            "users", f"expected at most {simulators * users} in {simulators} simulators"
        )
    rng = np.random.default_rng(seed)
    first, second = optimisers(config)
    nothing = Scaling.of(jnp.zeros((1, environment.observations)))
    learner = Actor(actor, environment.actions, nothing, rng)
    scales = _scales(config, learner, environment, extractor, key_of(seed, 0))
    learner = eqx.tree_at(lambda each: each.scaling, learner, scales.observation)
    critic = Critic(
        scaling=scales.secret,
        layers=Perceptron((environment.secrets + 1, config.critic, config.critic, 1), rng),
        reward_mean=scales.reward.mean[0],
        reward_scale=scales.reward.deviation[0],
        discount=config.discount,
    )
    return Training(
        actor=learner,
        critic=critic,
        optimisers=(
            first.init(eqx.filter(learner, eqx.is_array)),
            second.init(eqx.filter(critic, eqx.is_array)),
        ),
        key=numbers_of(key_of(seed, 1)),
        iteration=jnp.zeros((), jnp.int32),
    )


def users_of_each(config: PPOConfig, environment: Environment) -> int:
    """Users of each simulator in an iteration: a multiple of the minibatches."""
    of_a_minibatch = config.users // (environment.shape[0] * config.minibatches)
    return max(1, of_a_minibatch) * config.minibatches


def optimisers(
    config: PPOConfig,
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Adam of actor and critic, with rates that fall linearly to a twentieth."""
    steps = config.iterations * config.epochs * config.minibatches

    def adam(rate: float) -> optax.GradientTransformation:
        # One vector of all weights: a few operations to compile and run, not some for each array.
        return optax.flatten(
            optax.chain(
                optax.clip_by_global_norm(config.max_norm),
                optax.adam(optax.linear_schedule(rate, rate / 20.0, steps), eps=1e-5),
            )
        )

    return adam(config.actor_rate), adam(config.critic_rate)


class _Scales(NamedTuple):
    observation: Scaling
    secret: Scaling
    reward: Scaling


@eqx.filter_jit
def _scales(
    config: PPOConfig, actor: Actor, environment: Environment, extractor: SADAE | None, key: Key
) -> _Scales:
    chosen = environment.take_users(key, users_of_each(config, environment))
    episode = play(actor, chosen, extractor, key)
    return _Scales(
        observation=Scaling.of(episode.seen.observation),
        secret=Scaling.of(episode.secret[:-1]),
        reward=Scaling.of(episode.reward[..., None]),
    )


class Measured(NamedTuple):
    """What an iteration was like, in scalars.

    Attributes
    ----------
    mean_return
        Of a user in it.
    entropy
        Of the policy, in nats.
    explained
        Share of the variance of returns to come that the critic explains.
    """

    mean_return: jax.Array
    entropy: jax.Array
    explained: jax.Array


@eqx.filter_jit
def advance(
    config: PPOConfig,
    training: Training,
    environment: Environment,
    extractor: SADAE | None,
    iterations: int,
) -> tuple[Training, Measured]:
    """Train for some iterations, in one compiled loop.

    Parameters
    ----------
    config
        How.
    training
        Where it stands.
    environment
        S simulators with U users each.
    extractor
        Tells the code of each group; None if the policy is told none.
    iterations
        How many, at least 1.

    Returns
    -------
    training
        Where it stands then.
    measured
        A row for each iteration.
    """
    # Arrays alone are carried through a loop.
    arrays, rest = eqx.partition(training, eqx.is_array)

    def body(arrays, _):  # type: ignore[no-untyped-def]
        after, measured = _iterate(config, eqx.combine(arrays, rest), environment, extractor)
        return eqx.filter(after, eqx.is_array), measured

    arrays, measured = jax.lax.scan(body, arrays, length=iterations)
    return eqx.combine(arrays, rest), measured


def _iterate(
    config: PPOConfig, training: Training, environment: Environment, extractor: SADAE | None
) -> tuple[Training, Measured]:
    key, users_key, play_key, order_key = jax.random.split(restored(training.key), 4)
    chosen = environment.take_users(users_key, users_of_each(config, environment))
    episode = play(training.actor, chosen, extractor, play_key, sampled=True)
    session = environment.session
    advantage, target, value = _advantages(config, training.critic, episode, session)
    rows = _Rows(episode, advantage, target)
    entropy_weight = config.entropy * (1.0 - training.iteration / config.iterations)
    transforms = optimisers(config)

    def improve(carry, part):  # type: ignore[no-untyped-def]
        actor, critic, (first, second) = carry
        batch = _part(rows, part)
        (_, entropy), gradient = eqx.filter_value_and_grad(_actor_loss, has_aux=True)(
            actor, batch, config.clip, entropy_weight
        )
        moved, first = transforms[0].update(gradient, first)
        actor = eqx.apply_updates(actor, moved)
        gradient = eqx.filter_grad(_critic_loss)(critic, batch, session)
        moved, second = transforms[1].update(gradient, second)
        critic = eqx.apply_updates(critic, moved)
        return (actor, critic, (first, second)), entropy

    users = chosen.shape[1]
    # As many random orders of the users as there are epochs.
    orders = jnp.argsort(jax.random.uniform(order_key, (config.epochs, users)), axis=-1)
    parts = orders.reshape(config.epochs * config.minibatches, -1)
    start = (training.actor, training.critic, training.optimisers)
    (actor, critic, states), entropy = jax.lax.scan(improve, start, parts)
    after = Training(
        actor=actor,
        critic=critic,
        optimisers=states,
        key=numbers_of(key),
        iteration=training.iteration + 1,
    )
    return after, Measured(
        mean_return=episode.reward.sum(axis=0).mean(),
        entropy=entropy.mean(),
        explained=1.0 - jnp.var(target - value) / jnp.var(target),
    )


class _Rows(NamedTuple):
    episode: Episode
    advantage: jax.Array
    target: jax.Array


def _part(rows: _Rows, users: jax.Array) -> _Rows:
    """The rows of some users of every simulator."""

    def take(array: jax.Array) -> jax.Array:
        return jnp.take(array, users, axis=2)

    episode = rows.episode
    own = Episode(
        seen=episode.seen._replace(
            observation=take(episode.seen.observation),
            previous=take(episode.seen.previous),
            left=take(episode.seen.left),
        ),
        action=take(episode.action),
        reward=take(episode.reward),
        probability=take(episode.probability),
        state=jnp.take(episode.state, users, axis=1),
        secret=take(episode.secret),
        steps_left=take(episode.steps_left),
    )
    return _Rows(own, take(rows.advantage), take(rows.target))


def _advantages(
    config: PPOConfig, critic: Critic, episode: Episode, session: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``A_t = sum_i (gamma lambda)^i (r_{t+i} + gamma V_{t+i+1} - V_{t+i})``, A + V and V.

    V after the last step is 0 if the session is over, and the critic's if it was truncated: of no
    steps left the critic says 0.
    """
    values = critic(episode.secret, episode.steps_left, session)
    value = values[:-1]
    errors = episode.reward + config.discount * values[1:] - value

    def step(later: jax.Array, error: jax.Array) -> tuple[jax.Array, jax.Array]:
        advantage = error + config.discount * config.trace * later
        return advantage, advantage

    _, advantage = jax.lax.scan(step, jnp.zeros_like(value[0]), errors, reverse=True)
    return advantage, advantage + value, value


def _actor_loss(
    actor: Actor, rows: _Rows, clip: float, entropy_weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """``-min(w A, clip(w, 1 - eps, 1 + eps) A)`` and the entropy, means over all steps."""
    episode = rows.episode
    pmf = actor.pmfs(episode.seen, episode.state)
    probability = probability_of(pmf, episode.action)
    ratio = probability / episode.probability
    # Simulators with larger rewards would otherwise drown those with smaller ones.
    advantage = rows.advantage - rows.advantage.mean(axis=(0, 2), keepdims=True)
    advantage = advantage / (advantage.std(axis=(0, 2), keepdims=True) + 1e-8)
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * advantage)
    entropy = -(pmf * jnp.log(pmf + 1e-12)).sum(axis=-1).mean()
    return -gain.mean() - entropy_weight * entropy, entropy


def _critic_loss(critic: Critic, rows: _Rows, session: int) -> jax.Array:
    """Squared error of the mean reward to come, in units of its scale."""
    left = rows.episode.steps_left[:-1]
    value = critic(rows.episode.secret[:-1], left, session)
    error = (value - rows.target) / (critic.weight(left) * critic.reward_scale)
    return jnp.square(error).mean()
