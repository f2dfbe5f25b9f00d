"""Sessions of a log that are played again: a generation answers, and learned users react."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from croupier.offline.interactions import logged_requests
from croupier.offline.simulator_gap import Simulated, Simulation
from croupier.sim2rec.environment import key_of
from croupier.sim2rec.user_model import UserModel, drawn_reward, fit_users
from croupier.sim2rec.user_model_config import UserModelConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from croupier.offline.interactions import LoggedRequest
    from croupier.offline.sessions import LoggedSessions
    from croupier.policy.events import Features
    from croupier.policy.generation import Generation
    from croupier.policy.simulators import SimulatorsSection

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]

__all__ = ("play_generation", "simulate_sessions")

# Held-out sessions of a generation that are played, in every simulator: more tell little more.
_MOST = 300


def simulate_sessions(
    sessions: LoggedSessions,
    answered: Mapping[int, NDArray[np.bool_]],
    generation: Callable[[int], Generation],
    section: SimulatorsSection,
    *,
    state: Sequence[str],
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Simulation:
    """Learn simulators from sessions, and play those that were held out again.

    This is a :class:`~croupier.offline.simulator_gap.Simulate`, which see.
    """
    config = UserModelConfig(
        members=section.members, steps=section.steps, held_out=section.held_out
    )
    fitted = fit_users(sessions, config, seed=seed, progress=progress)
    rng = np.random.default_rng(seed)
    found = {}
    for number, whole in answered.items():
        places = np.flatnonzero(whole & fitted.held_out)
        if len(places) == 0:
            continue
        if len(places) > _MOST:
            places = np.sort(rng.choice(places, _MOST, replace=False))
        found[number] = Simulated(
            places,
            play_generation(
                fitted.models, sessions, places, generation(number), state=state, seed=seed
            ),
        )
    return Simulation(fitted.held_out, found)


def play_generation(
    models: UserModel,
    sessions: LoggedSessions,
    places: IntArray,
    generation: Generation,
    *,
    state: Sequence[str],
    seed: int,
) -> FloatArray:
    """Returns of sessions in every simulator, with a generation's answers, shape (members, m).

    Each begins as it did and has as many steps. A step's request is the session's first one, with
    the simulated user's observation at the paths of the state.

    Parameters
    ----------
    models
        Members of an ensemble, each of which is a simulator.
    sessions
        Of the log.
    places
        Which of them are played, shape (m,).
    generation
        That answers.
    state
        Paths of the state's columns.
    seed
        Of all draws.
    """
    first = sessions.interactions[sessions.row[places, 0]]
    asked = list(logged_requests(first))
    order = {action: k for k, action in enumerate(sessions.actions)}
    columns = [np.array([order[each.id] for each in request.actions]) for request in asked]
    members, m = models.log_factor.shape[0], len(places)
    rng = np.random.default_rng((seed, generation.number))
    observation = np.broadcast_to(sessions.state[places, 0], (members, m, len(state))).copy()
    memory = jnp.zeros((members, m, models.recurrent.weight.shape[1]))
    live = sessions.live[places]
    lowest = sessions.state[sessions.live].min(axis=0)
    highest = sessions.state[sessions.live].max(axis=0)
    total = np.zeros((members, m))
    for step in range(int(sessions.steps[places].max())):
        draws = rng.random((members, m))
        action = np.zeros((members, m), dtype=np.int64)
        for i in np.flatnonzero(live[:, step]):
            for member in range(members):
                pmf = _pmf(generation, asked[i], state, observation[member, i])
                below = pmf.cumsum() <= draws[member, i] * pmf.sum()
                action[member, i] = columns[i][min(int(below.sum()), len(pmf) - 1)]
        noise = jax.random.normal(
            key_of(seed, generation.number, step), (members, m, 1 + len(state))
        )
        memory, seen, reward = _respond(
            models, memory, jnp.asarray(observation, jnp.float32), jnp.asarray(action), noise
        )
        total += np.where(live[:, step], np.asarray(reward, np.float64), 0.0)
        observation = np.clip(np.asarray(seen, np.float64), lowest, highest)
    return total


@eqx.filter_jit
def _respond(
    models: UserModel,
    memory: jax.Array,
    observation: jax.Array,
    action: jax.Array,
    noise: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A step of every user in every simulator: memories, observations and rewards after it."""

    def of_one(model: UserModel, *given: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        memory, observation, action, noise = given
        expected = model.reward(memory, observation, action)
        reward = drawn_reward(model, expected, noise[..., 0])
        seen = model.following(memory, observation, action, reward)
        after = model.remember(memory, observation, action, reward)
        return after, seen.mean + seen.deviation * noise[..., 1:], reward

    done: tuple[jax.Array, jax.Array, jax.Array] = eqx.filter_vmap(of_one)(
        models, memory, observation, action, noise
    )
    return done


def _pmf(
    generation: Generation, asked: LoggedRequest, state: Sequence[str], observation: FloatArray
) -> FloatArray:
    context: Features = dict(asked.context)
    for path, value in zip(state, observation.tolist(), strict=True):
        context = _with(context, path, value)
    return generation.pmf(context, asked.actions, asked.eligible, asked.baseline)[0]


def _with(context: Features, path: str, value: float) -> Features:
    """A copy of a context with a number at a path, where ``value_at`` finds it."""
    head, dot, rest = path.partition(".")
    if path in context or not dot:
        return context | {path: value}
    within: Any = context.get(head)
    return context | {head: _with(within if isinstance(within, dict) else {}, rest, value)}
