"""User simulators learned from logged sessions: an ensemble of recurrent models.

A model sees what happened to a user so far (observations, actions, rewards) through a gated
recurrent unit, and tells how the reward of the next step is distributed, and given the reward the
observation after it: normal, with mean and deviation of their own, and one if the log's rewards are
0 or 1. What is observed often tells of the reward, or is the reward; drawn apart, they would
contradict each other, and what a model remembers of a simulated user would be unlike any real one.
Every member is fitted to another sample of the users, drawn with replacement, so what the log says
little about, the members disagree on. How wide the distributions are is put right with users that
no member has seen.

Sources: Chen et al., 2023 (arXiv 2305.04832), an ensemble of learned simulators; Chua et al.,
"Deep Reinforcement Learning in a Handful of Trials using Probabilistic Dynamics Models", NeurIPS
2018, bootstrapped probabilistic models; Levi et al., "Evaluating and Calibrating Uncertainty
Prediction in Regression Tasks", 2019, one factor for the deviations.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax

from croupier.policy.errors import NotEnoughDataError
from croupier.sim2rec.checkpoint import load_checkpoint, save_checkpoint
from croupier.sim2rec.environment import key_of
from croupier.sim2rec.networks import Perceptron, Recurrent, Scaling

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from croupier.offline.sessions import LoggedSessions
    from croupier.sim2rec.environment import Key
    from croupier.sim2rec.user_model_config import UserModelConfig

__all__ = (
    "FittedUsers",
    "OneStepErrors",
    "Prediction",
    "RollOutErrors",
    "Told",
    "UserModel",
    "drawn_reward",
    "fit_users",
    "told_of",
)

_SMALLEST = 1e-2
"""Deviations are at least this, in units of the column's own."""

_LEAST_USERS = 20

_DRAWS = 8
"""Roll-outs of each session by each member, whose mean is what is expected of it."""


class Told(NamedTuple):
    """Sessions as models take them, step by step, in any leading axes after the first.

    Attributes
    ----------
    observation
        Before each step's action, shape (T, ..., F).
    action
        Integers of shape (T, ...).
    reward
        Shape (T, ...).
    live
        1 where there is a step and 0 beyond the end, shape (T, ...).
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    live: jax.Array


class Prediction(NamedTuple):
    """Of a step: the reward, (...), the observation after it, (..., F), or both as columns."""

    mean: jax.Array
    deviation: jax.Array


class UserModel(eqx.Module):
    """One member of an ensemble."""

    observed: Scaling
    rewarded: Scaling
    recurrent: Recurrent
    rewards: Perceptron
    followings: Perceptron
    log_factor: jax.Array
    actions: int = eqx.field(static=True)
    binary: bool = eqx.field(static=True)

    def __init__(
        self,
        config: UserModelConfig,
        observed: Scaling,
        rewarded: Scaling,
        *,
        actions: int,
        binary: bool,
        rng: np.random.Generator,
    ) -> None:
        columns = observed.mean.shape[0]
        self.observed, self.rewarded = observed, rewarded
        self.actions, self.binary = actions, binary
        self.recurrent = Recurrent(columns + actions + 1, config.memory, rng)
        inputs = config.memory + columns + actions
        self.rewards = Perceptron((inputs, config.hidden, 2), rng, gain=0.1)
        self.followings = Perceptron((inputs + 1, config.hidden, 2 * columns), rng, gain=0.1)
        self.log_factor = jnp.zeros(1 + columns)

    def first_state(self, shape: tuple[int, ...]) -> jax.Array:
        """What is known of users before their first step, shape ``(*shape, H)``."""
        return jnp.zeros((*shape, self.recurrent.size))

    def reward(self, state: jax.Array, observation: jax.Array, action: jax.Array) -> Prediction:
        """What a step earns, shape (...), of states (..., H), observations (..., F), actions (...).

        A reward that is 0 or 1 has its chance as mean.
        """
        told = self.rewards(self._known(state, observation, action))
        if self.binary:
            chance = jax.nn.sigmoid(told[..., 0])
            return Prediction(chance, jnp.sqrt(chance * (1.0 - chance)))
        mean, scale = jax.lax.stop_gradient((self.rewarded.mean[0], self.rewarded.deviation[0]))
        factor = jnp.exp(jax.lax.stop_gradient(self.log_factor[0]))
        deviation = (jax.nn.softplus(told[..., 1]) + _SMALLEST) * factor
        return Prediction(mean + told[..., 0] * scale, deviation * scale)

    def following(
        self, state: jax.Array, observation: jax.Array, action: jax.Array, reward: jax.Array
    ) -> Prediction:
        """What is observed after a step that earned a reward, shape (..., F)."""
        known = self._known(state, observation, action)
        told = self.followings(jnp.concatenate([known, self.rewarded(reward[..., None])], axis=-1))
        change, spread = jnp.split(told, 2, axis=-1)
        scale = jax.lax.stop_gradient(self.observed.deviation)
        factor = jnp.exp(jax.lax.stop_gradient(self.log_factor[1:]))
        deviation = (jax.nn.softplus(spread) + _SMALLEST) * factor
        # Most of what a user looks like stays as it is from one step to the next.
        return Prediction(observation + change * scale, deviation * scale)

    def both(self, state: jax.Array, told: Told) -> Prediction:
        """Reward and following observation of logged steps, column by column, (..., 1 + F)."""
        earned = self.reward(state, told.observation, told.action)
        seen = self.following(state, told.observation, told.action, told.reward)
        return Prediction(
            *(
                jnp.concatenate([a[..., None], b], axis=-1)
                for a, b in zip(earned, seen, strict=True)
            )
        )

    @property
    def scales(self) -> jax.Array:
        """Deviations of the reward and of the observation's columns, shape (1 + F,)."""
        scales: jax.Array = jax.lax.stop_gradient(
            jnp.concatenate([self.rewarded.deviation, self.observed.deviation])
        )
        return scales

    def remember(
        self, state: jax.Array, observation: jax.Array, action: jax.Array, reward: jax.Array
    ) -> jax.Array:
        """The state after a step."""
        return self.recurrent.step(
            state, self.recurrent.inputs(self._inputs(observation, action, reward))
        )

    def states(self, told: Told) -> jax.Array:
        """States before each step, shape (T, ..., H)."""
        inputs = self._inputs(told.observation, told.action, told.reward)
        first = self.first_state(told.reward.shape[1:])
        after = self.recurrent(inputs, first)
        return jnp.concatenate([first[None], after[:-1]])

    def _known(self, state: jax.Array, observation: jax.Array, action: jax.Array) -> jax.Array:
        taken = jax.nn.one_hot(action, self.actions)
        return jnp.concatenate([state, self.observed(observation), taken], axis=-1)

    def _inputs(self, observation: jax.Array, action: jax.Array, reward: jax.Array) -> jax.Array:
        taken = jax.nn.one_hot(action, self.actions)
        earned = self.rewarded(reward[..., None])
        return jnp.concatenate([self.observed(observation), taken, earned], axis=-1)


class OneStepErrors(NamedTuple):
    """Of steps whose past is known, of users that nobody has been fitted to.

    Attributes
    ----------
    rmse, naive_rmse
        Root mean squared error of the reward, by the ensemble's mean, and by the mean reward of the
        action alone.
    log_likelihood
        Of reward and next observation, in nats for each step, mean of the members.
    coverage
        Share of the rewards within the members' central 90% intervals; NaN if rewards are 0 or 1.
    calibration
        By which factor deviations were multiplied for it, the mean of members and columns.
    """

    rmse: float
    naive_rmse: float
    log_likelihood: float
    coverage: float
    calibration: float


class RollOutErrors(NamedTuple):
    """Of whole sessions with the actions of the log, of which only the beginning is known.

    Attributes
    ----------
    by_step
        Root mean squared error of the reward of each step, shape (T,).
    naive_by_step
        The same of the mean reward of the action alone.
    return_bias
        Mean return of simulated less that of real sessions.
    return_error
        Root mean squared error of a session's return.
    """

    by_step: NDArray[np.float64]
    naive_by_step: NDArray[np.float64]
    return_bias: float
    return_error: float


class FittedUsers(NamedTuple):
    """An ensemble and how well it tells what it hasn't seen.

    Attributes
    ----------
    models
        A model whose arrays have a leading axis of members.
    held_out
        Which sessions were held out, shape (n,).
    steps
        Gradient steps that told the held-out sessions best.
    curve
        Mean negative log likelihood of a step at each look, of the held-out sessions.
    one_step, roll_outs
        Errors on the held-out sessions.
    """

    models: UserModel
    held_out: NDArray[np.bool_]
    steps: int
    curve: list[float]
    one_step: OneStepErrors
    roll_outs: RollOutErrors


def drawn_reward(model: UserModel, expected: Prediction, draw: jax.Array) -> jax.Array:
    """A reward of the distribution that is expected, of a standard normal draw."""
    if model.binary:
        chance = jax.scipy.stats.norm.cdf(draw)
        return (chance < expected.mean).astype(expected.mean.dtype)
    return expected.mean + expected.deviation * draw


def told_of(sessions: LoggedSessions) -> Told:
    """Logged sessions as models take them, steps first."""

    def turned(values: NDArray[np.generic]) -> jax.Array:
        return jnp.asarray(np.moveaxis(values, 1, 0))

    return Told(
        observation=turned(sessions.state.astype(np.float32)),
        action=turned(sessions.action.astype(np.int32)),
        reward=turned(sessions.reward.astype(np.float32)),
        live=turned(sessions.live.astype(np.float32)),
    )


def fit_users(
    sessions: LoggedSessions,
    config: UserModelConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FittedUsers:
    """Fit an ensemble of user models to logged sessions.

    Parameters
    ----------
    sessions
        With the state's columns.
    config
        How.
    seed
        Everything random of it, at least 0.
    checkpoint
        A file in which the models are kept, and that they are read from if it is there and of the
        same sessions.
    progress
        Called with the gradient steps done and those to be done.

    Raises
    ------
    NotEnoughDataError
        If there are fewer than 20 users.
    """
    users = np.unique(sessions.user)
    if len(users) < _LEAST_USERS:
        raise NotEnoughDataError(f"expected sessions of {_LEAST_USERS} users, got {len(users)}")
    rng = np.random.default_rng(seed)
    judges = rng.choice(users, max(2, round(config.held_out * len(users))), replace=False)
    held_out = np.isin(sessions.user, judges)
    told = told_of(sessions)
    ours, theirs = _some(told, ~held_out), _some(told, held_out)
    chances = _bootstraps(sessions.user[~held_out], config.members, rng)
    models = _blank(config, ours, len(sessions.actions), rng)
    purpose = _purpose(sessions, config, seed)
    found = None if checkpoint is None else load_checkpoint(checkpoint, models, purpose=purpose)
    if found is not None:
        best, curve = found[0], msgspec.json.decode(found[1], type=list[float])
    else:
        best, curve = _fit(
            config,
            models,
            ours=ours,
            theirs=theirs,
            chances=chances,
            seed=seed,
            progress=progress,
        )
        if checkpoint is not None:
            save_checkpoint(checkpoint, best, purpose=purpose, notes=curve)
    calibrated = _calibrated(best, theirs)
    naive = _naive(ours, theirs, len(sessions.actions))
    return FittedUsers(
        models=calibrated,
        held_out=held_out,
        steps=config.every * (1 + min(range(len(curve)), key=curve.__getitem__)),
        curve=curve,
        one_step=_one_step(calibrated, theirs, naive),
        roll_outs=_roll_outs(calibrated, theirs, naive, key_of(seed, 2)),
    )


def _purpose(sessions: LoggedSessions, config: UserModelConfig, seed: int) -> str:
    """What models are fitted to, and how."""
    digest = hashlib.sha256()
    for each in (sessions.reward, sessions.state, sessions.action, sessions.steps):
        digest.update(np.ascontiguousarray(each).tobytes())
    return msgspec.json.encode([config, seed, digest.hexdigest()]).decode()


def _fit(
    config: UserModelConfig,
    models: UserModel,
    *,
    ours: Told,
    theirs: Told,
    chances: jax.Array,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[UserModel, list[float]]:
    """The models as they told the held-out sessions best, and how well they did at each look."""
    best, curve = models, list[float]()
    standing = _begun(config, models)
    for part in range(config.steps // config.every):
        if progress is not None:
            progress(part * config.every, config.steps)
        standing = _advance(config, standing, ours, chances, key_of(seed, 1, part))
        curve.append(float(_surprise(standing.models, theirs).mean()))
        if curve[-1] < min(curve[:-1], default=math.inf):
            best = standing.models
    if progress is not None:
        progress(config.steps, config.steps)
    return best, curve


def _some(told: Told, kept: NDArray[np.bool_]) -> Told:
    where = np.flatnonzero(kept)
    return Told(*(each[:, where] for each in told))


def _bootstraps(users: NDArray[np.str_], members: int, rng: np.random.Generator) -> jax.Array:
    """Sums of the chances of sessions to be drawn, shape (M, n): users with replacement."""
    names, place = np.unique(users, return_inverse=True)
    counts = rng.multinomial(len(names), np.full(len(names), 1.0 / len(names)), size=members)
    sums = counts[:, place].cumsum(axis=1)
    return jnp.asarray(sums / sums[:, -1:], jnp.float32)


def _blank(
    config: UserModelConfig, told: Told, actions: int, rng: np.random.Generator
) -> UserModel:
    """Members that have learned nothing but the scales, stacked."""
    live = np.asarray(told.live) > 0.0
    observed = Scaling.of(told.observation[live])
    reward = np.asarray(told.reward)[live]
    binary = bool(np.isin(reward, (0.0, 1.0)).all())
    rewarded = Scaling.of(jnp.asarray(reward)[:, None])
    members = [
        UserModel(config, observed, rewarded, actions=actions, binary=binary, rng=rng)
        for _ in range(config.members)
    ]
    stacked: UserModel = jax.tree.map(lambda *each: jnp.stack(each), *members)
    return stacked


def _optimiser(config: UserModelConfig) -> optax.GradientTransformation:
    rate = optax.linear_schedule(config.rate, config.rate / 20.0, config.steps)
    return optax.flatten(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)))


class _Standing(NamedTuple):
    """Members and their optimisers, with a leading axis of members."""

    models: UserModel
    optimisers: optax.OptState


def _begun(config: UserModelConfig, models: UserModel) -> _Standing:
    initial: optax.OptState = eqx.filter_vmap(_optimiser(config).init)(
        eqx.filter(models, eqx.is_array)
    )
    return _Standing(models, initial)


@eqx.filter_jit
def _advance(
    config: UserModelConfig, standing: _Standing, told: Told, chances: jax.Array, key: Key
) -> _Standing:
    """Some gradient steps of all members, in one compiled loop."""
    optimiser = _optimiser(config)

    def of_one(standing: _Standing, chances: jax.Array, key: Key) -> _Standing:
        arrays, rest = eqx.partition(standing, eqx.is_array)

        def step(carry, key):  # type: ignore[no-untyped-def]
            model, state = eqx.combine(carry, rest)
            chosen = jnp.searchsorted(
                chances, jax.random.uniform(key, (config.sessions,)), side="right"
            )
            batch = Told(*(jnp.take(each, chosen, axis=1) for each in told))
            moved, state = optimiser.update(eqx.filter_grad(_loss)(model, batch), state)
            after = _Standing(eqx.apply_updates(model, moved), state)
            return eqx.filter(after, eqx.is_array), None

        arrays, _ = jax.lax.scan(step, arrays, jax.random.split(key, config.every))
        after: _Standing = eqx.combine(arrays, rest)
        return after

    keys = jax.random.split(key, config.members)
    after: _Standing = eqx.filter_vmap(of_one)(standing, chances, keys)
    return after


def _loss(model: UserModel, told: Told) -> jax.Array:
    """What is made small: the mean over steps of the weighted negative log likelihood.

    Columns that are easily told have tiny deviations, and likelihoods whose gradients drown all the
    others'. Each column's is therefore multiplied by its deviation, as a constant (Seitzer et al.,
    "On the Pitfalls of Heteroscedastic Uncertainty Estimation", ICLR 2022, beta = 1/2).
    """
    columns, deviation = _log_likelihoods(model, told, model.states(told))
    weighted = (columns * jax.lax.stop_gradient(deviation)).sum(axis=-1)
    return -weighted.sum() / told.live.sum()


def _log_likelihoods(
    model: UserModel, told: Told, states: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Of reward and next observation, in units of their scales, and these deviations.

    Shape (T, ..., 1 + F) each; 0 where there is nothing to tell.
    """
    found, scale = model.both(states, told), model.scales
    deviation = found.deviation / scale
    columns = jax.scipy.stats.norm.logpdf(_ends(told) / scale, found.mean / scale, deviation)
    if model.binary:
        chance = jnp.clip(found.mean[..., 0], 1e-6, 1.0 - 1e-6)
        reward = told.reward * jnp.log(chance) + (1.0 - told.reward) * jnp.log1p(-chance)
        columns = columns.at[..., 0].set(reward)
        deviation = deviation.at[..., 0].set(1.0)
    # The last step of a session is followed by no observation.
    followed = jnp.broadcast_to(_followed(told)[..., None], columns[..., 1:].shape)
    told_of = jnp.concatenate([told.live[..., None], followed], axis=-1)
    return columns * told_of, deviation


def _ends(told: Told) -> jax.Array:
    """Rewards and the observations that followed, shape (T, ..., 1 + F)."""
    following = jnp.concatenate([told.observation[1:], told.observation[-1:]])
    return jnp.concatenate([told.reward[..., None], following], axis=-1)


def _followed(told: Told) -> jax.Array:
    return jnp.concatenate([told.live[1:], jnp.zeros_like(told.live[:1])])


@eqx.filter_jit
def _surprise(models: UserModel, told: Told) -> jax.Array:
    """Mean negative log likelihood of a step, of each member, shape (M,)."""

    def of_one(model: UserModel) -> jax.Array:
        columns, _ = _log_likelihoods(model, told, model.states(told))
        return -columns.sum() / told.live.sum()

    found: jax.Array = eqx.filter_vmap(of_one)(models)
    return found


@eqx.filter_jit
def _calibrated(models: UserModel, told: Told) -> UserModel:
    """Members whose standardised errors on these sessions have a mean square of 1."""

    def of_one(model: UserModel) -> UserModel:
        found = model.both(model.states(told), told)
        square = jnp.square((_ends(told) - found.mean) / found.deviation)
        weight = jnp.stack([told.live] + [_followed(told)] * (square.shape[-1] - 1), axis=-1)
        axes = tuple(range(square.ndim - 1))
        mean = (square * weight).sum(axis=axes) / weight.sum(axis=axes)
        factor = model.log_factor + 0.5 * jnp.log(jnp.maximum(mean, _SMALLEST**2))
        changed: UserModel = eqx.tree_at(lambda each: each.log_factor, model, factor)
        return changed

    calibrated: UserModel = eqx.filter_vmap(of_one)(models)
    return calibrated


def _naive(ours: Told, theirs: Told, actions: int) -> NDArray[np.float64]:
    """The mean reward of each step's action, (T, n), which a simulator has to beat."""
    live = np.asarray(ours.live) > 0.0
    taken, reward = np.asarray(ours.action)[live], np.asarray(ours.reward, np.float64)[live]
    total = np.bincount(taken, reward, minlength=actions)
    count = np.bincount(taken, minlength=actions)
    mean = np.where(count > 0, total / np.maximum(count, 1), reward.mean())
    naive: NDArray[np.float64] = mean[np.asarray(theirs.action)]
    return naive


@eqx.filter_jit
def _one_step_predictions(models: UserModel, told: Told) -> tuple[Prediction, jax.Array]:
    def of_one(model: UserModel) -> tuple[Prediction, jax.Array]:
        states = model.states(told)
        found = model.reward(states, told.observation, told.action)
        return found, _log_likelihoods(model, told, states)[0].sum(axis=-1)

    predicted: tuple[Prediction, jax.Array] = eqx.filter_vmap(of_one)(models)
    return predicted


def _one_step(models: UserModel, told: Told, naive: NDArray[np.float64]) -> OneStepErrors:
    found, likelihood = _one_step_predictions(models, told)
    live = np.asarray(told.live) > 0.0
    reward = np.asarray(told.reward, np.float64)
    mean = np.asarray(found.mean, np.float64)
    width = np.asarray(found.deviation, np.float64)
    within = np.abs(reward - mean) <= 1.6448536269514722 * width
    return OneStepErrors(
        rmse=_root_mean_square((mean.mean(axis=0) - reward)[live]),
        naive_rmse=_root_mean_square((naive - reward)[live]),
        log_likelihood=float(np.asarray(likelihood)[:, live].mean()),
        coverage=float("nan") if models.binary else float(within[:, live].mean()),
        calibration=float(np.exp(np.asarray(models.log_factor)).mean()),
    )


@eqx.filter_jit
def _rolled_out(models: UserModel, told: Told, key: Key) -> jax.Array:
    """Mean rewards that the members expect, shape (M, T, n), of which only the first look is told.

    Rewards and observations that are drawn go on into the next step.
    """

    def of_one(model: UserModel, key: Key) -> jax.Array:
        draws = jax.random.normal(key, (*told.reward.shape, told.observation.shape[-1] + 1))

        def step(carry, given):  # type: ignore[no-untyped-def]
            state, observation = carry
            action, draw = given
            found = model.reward(state, observation, action)
            reward = drawn_reward(model, found, draw[..., 0])
            seen = model.following(state, observation, action, reward)
            state = model.remember(state, observation, action, reward)
            return (state, seen.mean + seen.deviation * draw[..., 1:]), found.mean

        start = (model.first_state(told.reward.shape[1:]), told.observation[0])
        expected: jax.Array = jax.lax.scan(step, start, (told.action, draws))[1]
        return expected

    def of_draws(model: UserModel, key: Key) -> jax.Array:
        keys = jax.random.split(key, _DRAWS)
        return jax.vmap(lambda each: of_one(model, each))(keys).mean(axis=0)

    keys = jax.random.split(key, models.log_factor.shape[0])
    rolled: jax.Array = eqx.filter_vmap(of_draws)(models, keys)
    return rolled


def _roll_outs(
    models: UserModel, told: Told, naive: NDArray[np.float64], key: Key
) -> RollOutErrors:
    expected = np.asarray(_rolled_out(models, told, key), np.float64).mean(axis=0)
    live = np.asarray(told.live) > 0.0
    reward = np.asarray(told.reward, np.float64)

    def by_step(told_of: NDArray[np.float64]) -> NDArray[np.float64]:
        square = np.where(live, np.square(told_of - reward), 0.0)
        root: NDArray[np.float64] = np.sqrt(square.sum(axis=1) / live.sum(axis=1))
        return root

    returns = np.where(live, expected - reward, 0.0).sum(axis=0)
    return RollOutErrors(
        by_step=by_step(expected),
        naive_by_step=by_step(naive),
        return_bias=float(returns.mean()),
        return_error=_root_mean_square(returns),
    )


def _root_mean_square(errors: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))
