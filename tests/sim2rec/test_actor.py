"""The policy's pmf is exact, and an episode at once is the same as step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy

from croupier.policy.errors import InvalidInputError
from croupier.sim2rec.actor import Actor, Seen, draw_action
from croupier.sim2rec.environment import key_of
from croupier.sim2rec.learning_config import ActorConfig, Head, PPOConfig, SADAEConfig
from croupier.sim2rec.networks import Scaling

if TYPE_CHECKING:
    from typing import Any

STEPS, USERS, ACTIONS = 12, 40, 30

pmfs = eqx.filter_jit(Actor.pmfs)
step_of = eqx.filter_jit(Actor.step)


def actor_of(config: ActorConfig) -> Actor:
    scaling = Scaling(mean=jnp.array([10.0, 0.5, 5.0]), deviation=jnp.array([5.0, 1.0, 2.0]))
    actor = Actor(config, ACTIONS, scaling, np.random.default_rng(1))
    # As it is made it knows nothing, and its pmf hardly depends on what is seen.
    sharper: Actor = jax.tree.map(lambda each: each if each.ndim < 2 else 10.0 * each, actor)
    return sharper


def seen_of(config: ActorConfig) -> Seen:
    rng = np.random.default_rng(2)
    previous = rng.integers(0, ACTIONS, (STEPS, 1, USERS))
    previous[0] = -1
    return Seen(
        observation=jnp.asarray(rng.normal(8.0, 4.0, (STEPS, 1, USERS, 3)), jnp.float32),
        previous=jnp.asarray(previous),
        left=(jnp.arange(STEPS, 0, -1) / STEPS)[:, None, None],
        code=jnp.asarray(rng.normal(size=(1, 1, config.code)), jnp.float32),
    )


@pytest.mark.parametrize("head", ["ordered", "categorical"])
@pytest.mark.parametrize("memory", [0, 8])
@pytest.mark.parametrize("code", [0, 5])
def test_an_episode_at_once_equals_step_by_step(head: Head, memory: int, code: int) -> None:
    config = ActorConfig(head=head, memory=memory, hidden=16, code=code, floor=0.03)
    actor, seen = actor_of(config), seen_of(config)
    together = pmfs(actor, seen)
    np.testing.assert_allclose(together.sum(axis=-1), 1.0, atol=1e-5)
    assert float(together.min()) >= 0.03 / ACTIONS - 1e-7
    state = actor.first_state((1, USERS))
    for step in range(STEPS):
        now = Seen(seen.observation[step], seen.previous[step], seen.left[step, 0, 0], seen.code)
        state, pmf = step_of(actor, state, now)
        np.testing.assert_allclose(pmf, together[step], rtol=1e-4, atol=1e-6)
    # It does depend on what is seen.
    assert float(jnp.abs(together[0, 0, 0] - together[0, 0, 1]).max()) > 1e-3


def test_without_memory_only_the_present_matters() -> None:
    config = ActorConfig(memory=0, hidden=16)
    actor, seen = actor_of(config), seen_of(config)
    shuffled = seen._replace(
        observation=seen.observation.at[:-1].set(seen.observation[:-1][::-1]),
        previous=seen.previous.at[:-1].set(3),
    )
    np.testing.assert_array_equal(pmfs(actor, seen)[-1], pmfs(actor, shuffled)[-1])
    remembering = actor_of(ActorConfig(memory=8, hidden=16))
    changed = jnp.abs(pmfs(remembering, seen)[-1] - pmfs(remembering, shuffled)[-1])
    assert float(changed.max()) > 1e-3


def test_columns_that_it_does_not_see_do_not_matter() -> None:
    config = ActorConfig(memory=8, hidden=16, sees=(1, 2))
    actor, seen = actor_of(config), seen_of(config)
    other = seen._replace(observation=seen.observation.at[..., 0].add(7.0))
    np.testing.assert_array_equal(pmfs(actor, seen), pmfs(actor, other))


def test_actions_are_drawn_with_the_probabilities_of_the_pmf() -> None:
    pmf = np.array([0.0, 0.5, 0.2, 0.0, 0.3], np.float32)
    n = 100_000
    uniform = jax.random.uniform(key_of(5), (n,))
    drawn = draw_action(jnp.broadcast_to(jnp.asarray(pmf), (n, 5)), uniform)
    counts = np.bincount(np.asarray(drawn), minlength=5)
    assert counts[0] == counts[3] == 0
    # A false alarm in a thousand.
    assert scipy.stats.chisquare(counts[[1, 2, 4]], n * np.array([0.5, 0.2, 0.3])).pvalue > 1e-3
    edges = draw_action(jnp.asarray([pmf] * 3), jnp.array([0.0, 0.5, 1.0 - 2.0**-24]))
    assert edges.tolist() == [1, 2, 4]


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (ActorConfig, "memory", -1),
        (ActorConfig, "hidden", 0),
        (ActorConfig, "code", -1),
        (ActorConfig, "sees", ()),
        (ActorConfig, "floor", 1.0),
        (ActorConfig, "floor", float("nan")),
        (PPOConfig, "iterations", 0),
        (PPOConfig, "users", 1.5),
        (PPOConfig, "discount", 1.1),
        (PPOConfig, "trace", -0.1),
        (PPOConfig, "clip", 0.0),
        (PPOConfig, "actor_rate", float("nan")),
        (PPOConfig, "entropy", -1.0),
        (SADAEConfig, "code", 0),
        (SADAEConfig, "actions", 1),
        (SADAEConfig, "every", 7),
        (SADAEConfig, "rate", 0.0),
    ],
)
def test_bad_settings_name_the_field(config: Any, field: str, value: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        config(**{field: value})
    assert caught.value.field == field
