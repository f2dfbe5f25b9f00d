"""From logged sessions to a policy: simulators are learned, and the policy is trained in them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from croupier.sim2rec.actor import Actor, Seen
from croupier.sim2rec.checkpoint import load_checkpoint, save_checkpoint
from croupier.sim2rec.environment import key_of
from croupier.sim2rec.export import exported, group_codes
from croupier.sim2rec.learned_users import LearnedUsers, first_members, learned_users
from croupier.sim2rec.ppo import Training, advance, begin, play
from croupier.sim2rec.sadae import SADAE, blank_sadae, fit_sadae

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from croupier.offline.sessions import LoggedSessions
    from croupier.policy.recurrent import RecurrentPolicy, TrainingNotes
    from croupier.policy.sessions import SessionsConfig
    from croupier.sim2rec.log_study_config import PolicyConfig
    from croupier.sim2rec.user_model import UserModel
    from croupier.sim2rec.user_model_config import SimulatorsConfig

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]

__all__ = ("LearnedPolicy", "Playing", "returns_in", "train_policy")

# A part of the seed of its own: what a trained policy is worth in its simulators.
_TOLD = 102


class LearnedPolicy(NamedTuple):
    """A policy that was trained in simulators, and what tells it of a group.

    Attributes
    ----------
    actor, extractor
        The policy, and the auto-encoder; None if it is told no code.
    telling
        Columns of a first observation that the auto-encoder sees.
    horizon
        Steps of a session.
    """

    actor: Actor
    extractor: SADAE | None
    telling: tuple[int, ...]
    horizon: int

    def codes(self, first: FloatArray, group: IntArray) -> FloatArray:
        """The code of each user's group, shape (n, C), of first observations (n, F)."""
        if self.extractor is None:
            return np.zeros((len(first), 0))
        codes = np.zeros((len(first), self.extractor.config.code))
        for each in np.unique(group):
            own = group == each
            items = jnp.asarray(first[own][:, list(self.telling)], jnp.float32)
            codes[own] = np.asarray(self.extractor.encode(items).mean)
        return codes

    def exported(
        self, sessions: LoggedSessions, config: SessionsConfig, notes: TrainingNotes
    ) -> RecurrentPolicy:
        """What it is served as; groups are known by the sessions that it was learned from."""
        codes = None
        if self.extractor is not None:
            codes = group_codes(self.extractor, sessions, self.telling)
        return exported(
            self.actor,
            actions=sessions.actions,
            sessions=config,
            horizon=self.horizon,
            training=notes,
            codes=codes,
        )

    def pmfs(self, sessions: LoggedSessions) -> FloatArray:
        """What it would have done at every logged step, shape (n, T, D), among what could be."""
        action = np.moveaxis(sessions.action, 1, 0)
        previous = np.concatenate([np.full_like(action[:1], -1), action[:-1]])
        left = (self.horizon - np.arange(len(action))) / self.horizon
        seen = Seen(
            observation=jnp.asarray(np.moveaxis(sessions.state, 1, 0), jnp.float32),
            previous=jnp.asarray(previous),
            left=jnp.asarray(left, jnp.float32)[:, None],
            code=jnp.asarray(self.codes(sessions.state[:, 0], sessions.group), jnp.float32),
        )
        found = np.moveaxis(np.asarray(_pmfs(self.actor, seen), dtype=np.float64), 0, 1)
        possible = np.where(sessions.eligible, found, 0.0)
        total = possible.sum(axis=-1, keepdims=True)
        pmfs: FloatArray = np.divide(possible, total, out=np.zeros_like(found), where=total > 0.0)
        return pmfs


class Playing:
    """A trained policy that answers users step by step, as it would be served."""

    def __init__(self, policy: LearnedPolicy, group: IntArray) -> None:
        self._policy = policy
        self._group = group
        self._step = 0
        self._memory = policy.actor.first_state(group.shape)
        self._previous = jnp.full(group.shape, -1)
        self._code = jnp.zeros((len(group), 0))

    def pmfs(self, observation: FloatArray) -> FloatArray:
        """Of the next step, shape (n, D), of observations (n, F); then say what was done."""
        policy = self._policy
        if self._step == 0:
            self._code = jnp.asarray(policy.codes(observation, self._group), jnp.float32)
        left = jnp.float32((policy.horizon - self._step) / policy.horizon)
        seen = Seen(jnp.asarray(observation, jnp.float32), self._previous, left, self._code)
        self._memory, pmf = _step(policy.actor, self._memory, seen)
        self._step += 1
        return np.asarray(pmf, dtype=np.float64)

    def done(self, action: IntArray) -> None:
        """What was done in the step, shape (n,)."""
        self._previous = jnp.asarray(action)


@eqx.filter_jit
def _pmfs(actor: Actor, seen: Seen) -> jax.Array:
    return actor.pmfs(seen)


@eqx.filter_jit
def _step(actor: Actor, memory: jax.Array, seen: Seen) -> tuple[jax.Array, jax.Array]:
    return actor.step(memory, seen)


class _Run(NamedTuple):
    training: Training
    extractor: SADAE | None


def train_policy(
    config: PolicyConfig,
    models: UserModel,
    sessions: LoggedSessions,
    seed: int,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LearnedPolicy:
    """Train a policy in learned simulators.

    Parameters
    ----------
    config
        How; of these sessions, see :meth:`PolicyConfig.fitted_to`.
    models
        Of :func:`~croupier.sim2rec.user_model.fit_users`.
    sessions
        Whose users it is trained with.
    seed
        Everything random of it, at least 0.
    checkpoint
        A file that the training goes on from if it is there, and is kept in.
    progress
        Called with the iterations done and those to be done.

    Raises
    ------
    InvalidInputError, NotEnoughDataError
        As :func:`~croupier.sim2rec.learned_users.learned_users` raises them.
    """
    members = models if config.used is None else first_members(models, config.used)
    users = learned_users(members, sessions, config.simulators, seed=seed)
    purpose = msgspec.json.encode([config, seed]).decode()
    extractor = blank_sadae(config.sadae, users, seed) if config.actor.code else None
    run = _Run(begin(config.ppo, config.actor, users, extractor, seed), extractor)
    done, total = 0, config.ppo.iterations
    found = None if checkpoint is None else load_checkpoint(checkpoint, run, purpose=purpose)
    if found is not None:
        run, done = found[0], msgspec.json.decode(found[1], type=int)
    elif config.actor.code:
        extractor = _extractor(config, users, members, seed)
        run = _Run(begin(config.ppo, config.actor, users, extractor, seed), extractor)
    for before in range(done, total, config.every):
        if progress is not None:
            progress(before, total)
        training, _ = advance(config.ppo, run.training, users, run.extractor, config.every)
        run = run._replace(training=training)
        if checkpoint is not None:
            save_checkpoint(checkpoint, run, purpose=purpose, notes=before + config.every)
    if progress is not None:
        progress(total, total)
    return LearnedPolicy(run.training.actor, run.extractor, users.telling, sessions.row.shape[1])


def returns_in(
    models: UserModel,
    sessions: LoggedSessions,
    policy: LearnedPolicy,
    config: SimulatorsConfig,
    seed: int,
    *,
    shares: FloatArray,
) -> FloatArray:
    """Mean return of a session in each simulator, without penalty and filters, shape (M,).

    Of the policy as it would be served.

    Parameters
    ----------
    models
        M members.
    sessions
        Whose users are met, from the beginning of their sessions on.
    policy
        Of the same actions and columns.
    config
        How many users there are, and whether groups have simulators of their own.
    seed
        Of the users and of all draws, at least 0.
    shares
        How much each group of the sessions counts where they have simulators of their own, shape
        (G,).
    """
    plain = msgspec.structs.replace(
        config, penalty=0.0, support=0.0, trend=None, starts="first", horizon=sessions.row.shape[1]
    )
    users = learned_users(models, sessions, plain, seed=seed)
    users = replace(users, telling=policy.telling)
    key = key_of(seed, _TOLD)
    found = np.asarray(_mean_returns(policy.actor, users, policy.extractor, key), np.float64)
    share = shares[np.unique(sessions.group)] if config.by_group else np.ones(1)
    returns: FloatArray = share / share.sum() @ found.reshape(len(share), -1)
    return returns


@eqx.filter_jit
def _mean_returns(
    actor: Actor, users: LearnedUsers, extractor: SADAE | None, key: jax.Array
) -> jax.Array:
    return play(actor, users, extractor, key).reward.sum(axis=0).mean(axis=-1)


def _extractor(config: PolicyConfig, users: LearnedUsers, members: UserModel, seed: int) -> SADAE:
    """An extractor whose steps are chosen by groups that it hasn't seen."""
    every = members.log_factor.shape[0]
    groups = users.shape[0] // every
    judges = np.random.default_rng(seed).choice(groups, config.held_out, replace=False)
    held_out = (judges[:, None] * every + np.arange(every)).ravel().tolist()
    return fit_sadae(config.sadae, users, held_out, seed).sadae
