"""An ensemble of learned user models as an environment to train policies in.

Every member is a simulator. What the members don't agree on, what the log doesn't support and who
is modelled against all sense is where a policy could learn to exploit the models instead of serving
the users; each of these has a switch of its own (Chen et al., 2023, arXiv 2305.04832):

- the *penalty* takes off each reward what the members' expectations of it differ by;
- *truncated* roll-outs begin anywhere in a logged session and take a few steps, so that errors have
  few steps to add up in; the critic says what would have come;
- the *trend* filter drops users whose expected reward goes the wrong way as the action grows;
- the *execution* filter ends a roll-out at an action that the log hardly has, with a pessimistic
  reward for each step that is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.sim2rec.environment import Environment, Key, Past
from croupier.sim2rec.user_model import Prediction, UserModel, drawn_reward, told_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from croupier.offline.sessions import LoggedSessions
    from croupier.sim2rec.user_model_config import SimulatorsConfig

__all__ = ("LearnedUsers", "UsersState", "first_members", "learned_users", "wrong_trends")


class UsersState(NamedTuple):
    """Where the users of the roll-outs stand.

    Attributes
    ----------
    memory
        What each of the M members knows of each user, shape (S, U, M, H).
    observation
        Shape (S, U, F).
    inside
        Whether all actions so far were ones that the log supports, shape (S, U).
    """

    memory: jax.Array
    observation: jax.Array
    inside: jax.Array


class LearnedUsers(Environment):
    """S simulators with U users each, who start where logged users have been.

    Attributes
    ----------
    models
        All M members.
    member
        Which of them each simulator is, shape (S,).
    start
        Where the users start.
    before
        What had happened to them in their sessions; None if all start at the first step.
    supported
        Which actions the log supports for each user, shape (S, U, D).
    lowest, highest
        Of each column of the observation in the log, shape (F,); none goes beyond.
    penalty
        Weight of the members' disagreement, in rewards, at least 0; a scalar.
    exit_reward
        Of each step from an action on that isn't supported; a scalar.
    telling
        Columns that aren't the same for all users at the start, and tell groups apart.
    steps, whole
        Of a roll-out, and of a whole session.
    """

    models: UserModel
    member: jax.Array
    start: UsersState
    before: Past | None
    supported: jax.Array
    lowest: jax.Array
    highest: jax.Array
    penalty: jax.Array
    exit_reward: jax.Array
    telling: tuple[int, ...] = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    whole: int = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of simulators S and of users U."""
        simulators, users = self.start.inside.shape
        return simulators, users

    @property
    def horizon(self) -> int:
        """Steps of a roll-out."""
        return self.steps

    @property
    def session(self) -> int:
        """Steps of a session."""
        return self.whole

    def past(self) -> Past | None:
        """What had happened before the roll-outs."""
        return self.before

    @property
    def actions(self) -> int:
        """Number of actions D."""
        return self.models.actions

    @property
    def observations(self) -> int:
        """Columns of the sessions' state."""
        return int(self.lowest.shape[0])

    @property
    def secrets(self) -> int:
        """The own member's memory, the observation, and whether the log supports it all."""
        return int(self.start.memory.shape[-1]) + self.observations + 1

    def take_users(self, key: Key, users: int) -> LearnedUsers:
        """The same simulators with `users` of the users, drawn without replacement."""
        # Users stand in random order, so a block from a random place on will do.
        first = jax.random.randint(key, (), 0, self.shape[1])
        chosen = (first + jnp.arange(users)) % self.shape[1]
        return self._some(lambda each: jnp.take(each, chosen, axis=1), self.member)

    def take_simulators(self, simulators: list[int]) -> LearnedUsers:
        """The simulators at these places; all members still say where they disagree."""
        chosen = np.asarray(simulators)
        return self._some(lambda each: each[chosen], self.member[chosen])

    def reset(self, key: Key) -> tuple[UsersState, jax.Array]:
        """Start where the log was; there is nothing random in it."""
        del key
        return self.start, self.start.observation

    def step(
        self, key: Key, state: UsersState, action: jax.Array
    ) -> tuple[UsersState, jax.Array, jax.Array]:
        """Act on every user; rewards are those to learn from, with penalty and filters."""
        draws = jax.random.normal(key, (*self.shape, 1 + self.observations))
        return self.respond(state, action, draws)

    def respond(
        self, state: UsersState, action: jax.Array, draws: jax.Array
    ) -> tuple[UsersState, jax.Array, jax.Array]:
        """Act on every user, with these standard normal draws, shape (S, U, 1 + F)."""
        found = self.expect(state, action)
        own = Prediction(self._own(found.mean), self._own(found.deviation))
        reward = drawn_reward(self.models, own, draws[..., 0])
        seen = self._followings(state, action, reward)
        following = seen.mean + seen.deviation * draws[..., 1:]
        following = jnp.clip(following, self.lowest, self.highest)
        memory = self._remembered(state, action, reward)
        allowed = jnp.take_along_axis(self.supported, action[..., None], axis=-1)[..., 0]
        inside = state.inside & allowed
        disagreement = found.mean.std(axis=-1)
        earned = jnp.where(inside, reward - self.penalty * disagreement, self.exit_reward)
        return UsersState(memory, following, inside), following, earned

    def expect(self, state: UsersState, action: jax.Array) -> Prediction:
        """What every member expects an action to earn, shape (S, U, M)."""

        def of_one(model: UserModel, memory: jax.Array) -> Prediction:
            return model.reward(memory, state.observation, action)

        found: Prediction = eqx.filter_vmap(of_one, in_axes=(eqx.if_array(0), 2), out_axes=2)(
            self.models, state.memory
        )
        return found

    def secret(self, state: UsersState) -> jax.Array:
        """What the own member knows of each user, shape (S, U, P)."""
        own = self._own(state.memory)
        inside = state.inside[..., None].astype(own.dtype)
        return jnp.concatenate([own, state.observation, inside], axis=-1)

    def group_items(self, observation: jax.Array) -> jax.Array:
        """The columns of the first observation that tell groups apart, shape (S, U, I).

        Who is met within a session is told by the observation with which it began.
        """
        first = observation if self.before is None else self.before.observation[:, :, 0]
        return first[..., jnp.asarray(self.telling)]

    def _followings(self, state: UsersState, action: jax.Array, reward: jax.Array) -> Prediction:
        """What each simulator's own member expects to be observed, shape (S, U, F)."""
        own = jax.tree.map(
            lambda each: each[self.member] if eqx.is_array(each) else each, self.models
        )
        seen: Prediction = eqx.filter_vmap(lambda model, *told: model.following(*told))(
            own, self._own(state.memory), state.observation, action, reward
        )
        return seen

    def _own(self, values: jax.Array) -> jax.Array:
        """Of what members have, (S, U, M, ...), each simulator's own, (S, U, ...)."""
        place = self.member.reshape(-1, *(1,) * (values.ndim - 1))
        return jnp.take_along_axis(values, place, axis=2)[:, :, 0]

    def _remembered(self, state: UsersState, action: jax.Array, reward: jax.Array) -> jax.Array:
        def of_one(model: UserModel, memory: jax.Array) -> jax.Array:
            return model.remember(memory, state.observation, action, reward)

        remembered: jax.Array = eqx.filter_vmap(of_one, in_axes=(eqx.if_array(0), 2), out_axes=2)(
            self.models, state.memory
        )
        return remembered

    def _some(self, take, member: jax.Array) -> LearnedUsers:  # type: ignore[no-untyped-def]
        return LearnedUsers(
            models=self.models,
            member=member,
            start=UsersState(*map(take, self.start)),
            before=None if self.before is None else Past(*map(take, self.before)),
            supported=take(self.supported),
            lowest=self.lowest,
            highest=self.highest,
            telling=self.telling,
            penalty=self.penalty,
            exit_reward=self.exit_reward,
            steps=self.steps,
            whole=self.whole,
        )


def learned_users(
    models: UserModel, sessions: LoggedSessions, config: SimulatorsConfig, *, seed: int
) -> LearnedUsers:
    """Put fitted models and the users of a log together.

    Every member is a simulator, or as many as there are groups: group by group, and within a group
    member by member.

    Parameters
    ----------
    models
        Of :func:`~croupier.sim2rec.user_model.fit_users`.
    sessions
        Whose users the roll-outs start with; they may be others than those of the fit.
    config
        Switches.
    seed
        Of which users there are, at least 0.

    Raises
    ------
    InvalidInputError
        If the sessions have other actions or columns than the models or fewer steps than a
        roll-out, or the trend's scores aren't one for each action.
    NotEnoughDataError
        If a filter leaves no user.
    """
    if len(sessions.actions) != models.actions:
        raise InvalidInputError(
            "sessions", f"expected {models.actions} actions, got {len(sessions.actions)}"
        )
    whole = sessions.row.shape[1]
    if config.horizon > whole:
        raise InvalidInputError(
            "horizon", f"expected at most the {whole} steps of a session, got {config.horizon}"
        )
    place, step = _starts(sessions, config)
    memory = np.asarray(_memories(models, sessions))[:, step, place]
    observation = jnp.asarray(sessions.state[place, step], jnp.float32)
    fine = np.ones((memory.shape[0], len(place)), dtype=np.bool_)
    if config.trend is not None:
        fine = ~wrong_trends(models, jnp.asarray(memory), observation, config.trend)
    rng = np.random.default_rng(seed)
    group = sessions.group[place]
    parts = np.unique(group)[:, None] == group if config.by_group else np.ones((1, len(group))) > 0
    chosen = np.array(
        [
            _draw(rng, np.flatnonzero(possible & part), config.users)
            for part in parts
            for possible in fine
        ]
    )
    support = _support(sessions, config.support)[group]
    start = UsersState(
        memory=jnp.asarray(np.moveaxis(memory, 0, 1)[chosen]),
        observation=observation[chosen],
        inside=jnp.ones(chosen.shape, jnp.bool_),
    )
    rewards = sessions.reward[sessions.live]
    states = sessions.state[sessions.live]
    return LearnedUsers(
        models=models,
        member=jnp.tile(jnp.arange(len(fine)), len(parts)),
        start=start,
        before=_before(sessions, place[chosen], step[chosen], whole - config.horizon)
        if step.any()
        else None,
        supported=jnp.asarray(support[chosen]),
        lowest=jnp.asarray(states.min(axis=0), jnp.float32),
        highest=jnp.asarray(states.max(axis=0), jnp.float32),
        telling=_telling(sessions.state[:, 0]),
        penalty=jnp.asarray(config.penalty),
        exit_reward=jnp.asarray(np.quantile(rewards, config.pessimism), jnp.float32),
        steps=config.horizon,
        whole=whole,
    )


def first_members(models: UserModel, count: int) -> UserModel:
    """The ensemble without all but its first members."""
    first: UserModel = jax.tree.map(
        lambda each: each[:count] if eqx.is_array(each) else each, models
    )
    return first


def _starts(
    sessions: LoggedSessions, config: SimulatorsConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sessions and steps at which roll-outs may begin.

    One that would go on beyond the end begins earlier, so that it ends with the session.
    """
    live = sessions.live.copy()
    if config.starts == "first":
        live[:, 1:] = False
    place, step = np.nonzero(live)
    return place, np.minimum(step, live.shape[1] - config.horizon)


def _before(
    sessions: LoggedSessions, place: NDArray[np.int64], step: NDArray[np.int64], most: int
) -> Past:
    """What was logged of sessions before steps, shape (S, U) each, none later than `most`."""
    return Past(
        observation=jnp.asarray(sessions.state[:, :most][place], jnp.float32),
        action=jnp.asarray(sessions.action[:, :most][place], jnp.int32),
        steps=jnp.asarray(step, jnp.int32),
    )


def _telling(states: NDArray[np.float64]) -> tuple[int, ...]:
    """Columns that differ among users; all of them if none does."""
    differ = np.flatnonzero(np.ptp(states, axis=0) > 0.0)
    return tuple(differ.tolist()) or tuple(range(states.shape[1]))


@eqx.filter_jit
def _told_memories(models: UserModel, told) -> jax.Array:  # type: ignore[no-untyped-def]
    memories: jax.Array = eqx.filter_vmap(
        lambda model, told: model.states(told), in_axes=(eqx.if_array(0), None)
    )(models, told)
    return memories


def _memories(models: UserModel, sessions: LoggedSessions) -> jax.Array:
    """What members know before each logged step, shape (M, T, n, H)."""
    return _told_memories(models, told_of(sessions))


@eqx.filter_jit
def _expected_rewards(models: UserModel, memory: jax.Array, observation: jax.Array) -> jax.Array:
    """Of every action, by each member, shape (M, N, D)."""

    def of_one(model: UserModel, memory: jax.Array) -> jax.Array:
        def of_action(action: jax.Array) -> jax.Array:
            taken = jnp.full(observation.shape[:1], action)
            return model.reward(memory, observation, taken).mean

        return jax.vmap(of_action, out_axes=-1)(jnp.arange(model.actions))

    expected: jax.Array = eqx.filter_vmap(of_one)(models, memory)
    return expected


def wrong_trends(
    models: UserModel, memory: jax.Array, observation: jax.Array, scores: tuple[float, ...]
) -> NDArray[np.bool_]:
    """Whom a member expects to reward less the more there is of what should be rewarded.

    An intervention on the action alone: the slope of the expected reward on the scores, by least
    squares over all actions, is negative.

    Parameters
    ----------
    models
        M members.
    memory, observation
        Of N users, shape (M, N, H) and (N, F).
    scores
        How much of it each action has; in the opposite order if more of it should be rewarded less.

    Returns
    -------
    wrong
        Shape (M, N).

    Raises
    ------
    InvalidInputError
        If there isn't one score for each action, or all are equal.
    """
    if len(scores) != models.actions or len(set(scores)) == 1:
        raise InvalidInputError(
            "trend", f"expected {models.actions} scores that differ, got {list(scores)}"
        )
    centred = np.asarray(scores, dtype=np.float64)
    centred = centred - centred.mean()
    expected = np.asarray(_expected_rewards(models, memory, observation), dtype=np.float64)
    return np.asarray(expected @ centred < 0.0)


def _support(sessions: LoggedSessions, least: float) -> NDArray[np.bool_]:
    """Which actions at least that share of a group's logged steps has, shape (G, D)."""
    shape = len(sessions.groups), len(sessions.actions)
    counts = np.zeros(shape)
    group = np.broadcast_to(sessions.group[:, None], sessions.row.shape)[sessions.live]
    np.add.at(counts, (group, sessions.action[sessions.live]), 1.0)
    supported: NDArray[np.bool_] = counts >= least * counts.sum(axis=1, keepdims=True)
    return supported


def _draw(rng: np.random.Generator, possible: NDArray[np.int64], users: int) -> NDArray[np.int64]:
    if len(possible) == 0:
        raise NotEnoughDataError("expected users whose trend is right, a member has none")
    return rng.choice(possible, users, replace=len(possible) < users)
