"""Episodes that are parts of a session: what comes before and after them counts."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from croupier.sim2rec.actor import Seen
from croupier.sim2rec.environment import key_of
from croupier.sim2rec.learning_config import ActorConfig, PPOConfig
from croupier.sim2rec.ppo import Training, _advantages, advance, begin, play
from tests.sim2rec.orchard import SESSION, orchard

ACTOR = ActorConfig(memory=3, hidden=8, sees=(0,), head="categorical", floor=0.0)
CONFIG = PPOConfig(users=256, minibatches=2, critic=16, discount=0.9, trace=0.8)


@pytest.fixture(scope="module")
def begun() -> Training:
    return begin(CONFIG, ACTOR, orchard(256, 2), None, 3)


def test_advantages_tell_truncation_from_the_end_of_a_session(begun: Training) -> None:
    met = orchard(40, 2)
    episode = eqx.filter_jit(play)(begun.actor, met, None, key_of(2))
    advantage, target, _ = _advantages(CONFIG, begun.critic, episode, SESSION)
    left = np.asarray(episode.steps_left)
    assert set(left[0].ravel().tolist()) == {2, 3, 4, 5, 6}
    values = np.asarray(begun.critic(episode.secret, episode.steps_left, SESSION))
    reward = np.asarray(episode.reward)
    over = left[2] == 0
    assert 0 < over.sum() < over.size
    # The session's end is worth nothing, whatever the critic makes of the trees.
    following = np.where(over, 0.0, values[2])
    assert (np.abs(following[~over]) > 1e-3).all()
    second = reward[1] + 0.9 * following - values[1]
    first = reward[0] + 0.9 * values[1] - values[0] + 0.9 * 0.8 * second
    np.testing.assert_allclose(advantage, [first, second], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(target, [first + values[0], second + values[1]], rtol=1e-4)


def test_a_policy_has_seen_what_came_before_an_episode(begun: Training) -> None:
    met = orchard(40, 2)
    episode = eqx.filter_jit(play)(begun.actor, met, None, key_of(4))
    past = met.past()
    assert past is not None
    for user in range(40):
        steps = int(past.steps[0, user])
        assert episode.seen.left[0, 0, user] == pytest.approx((SESSION - steps) / SESSION)
        memory, previous = begun.actor.first_state(()), -1
        for step in range(steps):
            share = jnp.asarray((SESSION - step) / SESSION)
            seen = Seen(past.observation[0, user, step], jnp.asarray(previous), share, jnp.zeros(0))
            memory, _ = begun.actor.step(memory, seen)
            previous = int(past.action[0, user, step])
        assert int(episode.seen.previous[0, 0, user]) == previous
        np.testing.assert_allclose(episode.state[0, user], memory, atol=1e-5)
    pmf = begun.actor.pmfs(episode.seen, episode.state)
    again = jnp.take_along_axis(pmf, episode.action[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(episode.probability, again, rtol=1e-4)


@pytest.mark.parametrize(
    "steps",
    [2, pytest.param(SESSION, marks=pytest.mark.slow)],  # each is a program of its own
)
def test_truncated_and_whole_roll_outs_have_the_same_optimum(steps: int) -> None:
    """Two steps alone would have everyone harvest who has a tree."""
    config = PPOConfig(
        iterations=120,
        users=256,
        minibatches=2,
        critic=16,
        discount=1.0,
        entropy=0.03,
        actor_rate=3e-3,
        critic_rate=5e-3,
    )
    actor = ActorConfig(memory=0, hidden=16, sees=(0,), head="categorical", floor=0.0)
    met = orchard(256, steps)
    training, _ = advance(config, begin(config, actor, met, None, 5), met, None, 120)
    whole = eqx.filter_jit(play)(training.actor, orchard(200, SESSION), None, key_of(6))
    assert float(whole.reward.sum(axis=0).mean()) > 0.95 * 9.0
