"""The training loop: its parts against plain NumPy, that it learns, and that it goes on exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croupier.policy.errors import InvalidInputError
from croupier.sim2rec.checkpoint import load_checkpoint, save_checkpoint
from croupier.sim2rec.environment import key_of
from croupier.sim2rec.learning_config import ActorConfig, PPOConfig, SADAEConfig
from croupier.sim2rec.lts import LTSConfig, UserPopulation
from croupier.sim2rec.lts_groups import LTSGroups, draw_groups
from croupier.sim2rec.ppo import Training, _advantages, advance, begin, play
from croupier.sim2rec.sadae import blank_sadae
from tests.sim2rec.killed_training import train

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE_S = 300.0
SHORT = LTSConfig(horizon=4, documents=6)
CONFIG = PPOConfig(iterations=40, users=128, minibatches=2, critic=8, actor_rate=1e-2)


def groups_of(config: LTSConfig, means: tuple[float, ...], users: int = 64) -> LTSGroups:
    rng = np.random.default_rng(1)
    return draw_groups(
        [
            LTSConfig(mu_c=each, horizon=config.horizon, documents=config.documents)
            for each in means
        ],
        [UserPopulation.draw(users, rng) for _ in means],
    )


@pytest.fixture(scope="module")
def environment() -> LTSGroups:
    return groups_of(SHORT, (6.0, 20.0))


@pytest.fixture(scope="module")
def begun(environment: LTSGroups) -> Training:
    return begin(CONFIG, ActorConfig(memory=4, hidden=8), environment, None, 3)


def arrays(tree: object) -> list[np.ndarray]:
    return [np.asarray(each) for each in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


def same(left: object, right: object) -> bool:
    pairs = zip(arrays(left), arrays(right), strict=True)
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


def test_an_episode_tells_the_probabilities_with_which_it_was_played(
    environment: LTSGroups, begun: Training
) -> None:
    episode = eqx.filter_jit(play)(begun.actor, environment, None, key_of(1))
    pmf = eqx.filter_jit(begun.actor.pmfs)(episode.seen)
    again = jnp.take_along_axis(pmf, episode.action[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(episode.probability, again, rtol=1e-4)
    assert episode.reward.shape == (4, 2, 64)
    np.testing.assert_array_equal(episode.seen.previous[1:], episode.action[:-1])
    assert (np.asarray(episode.seen.previous[0]) == -1).all()
    # The policy sees what was earned only after it was earned.
    np.testing.assert_allclose(
        episode.seen.observation[1:, ..., 2], np.clip(episode.reward[:-1], 0.0, 100.0)
    )


def test_advantages_equal_a_plain_loop(environment: LTSGroups, begun: Training) -> None:
    config = PPOConfig(discount=0.9, trace=0.8)
    episode = eqx.filter_jit(play)(begun.actor, environment, None, key_of(2))
    advantage, target, value = _advantages(config, begun.critic, episode, 4)
    reward, values = np.asarray(episode.reward), np.asarray(value)
    expected = np.zeros_like(reward)
    for t in range(4):
        for later in range(t, 4):
            following = values[later + 1] if later < 3 else 0.0
            error = reward[later] + 0.9 * following - values[later]
            expected[t] += (0.9 * 0.8) ** (later - t) * error
    np.testing.assert_allclose(advantage, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(target, expected + values, rtol=1e-4, atol=1e-4)


def test_it_learns_what_is_best(environment: LTSGroups, begun: Training) -> None:
    # In four steps satisfaction matters little: the most clickbait is best, or close to it.
    before = float(play(begun.actor, environment, None, key_of(4)).reward.sum(0).mean())
    after, measured = advance(CONFIG, begun, environment, None, 40)
    assert measured.mean_return.shape == (40,)
    learned = play(after.actor, environment, None, key_of(4))
    state, _ = environment.reset(key_of(4))
    always = 0.0
    for _ in range(4):
        best = jnp.full(environment.shape, 5)
        state, _, reward = environment.step(key_of(0), state, best)
        always += float(reward.mean())
    earned = float(learned.reward.sum(0).mean())
    assert earned > before + 0.7 * (always - before)
    assert int(after.iteration) == 40


def test_a_checkpoint_goes_on_bit_for_bit(
    environment: LTSGroups, begun: Training, tmp_path: Path
) -> None:
    halfway, _ = advance(CONFIG, begun, environment, None, 2)
    whole, _ = advance(CONFIG, halfway, environment, None, 2)
    path = tmp_path / "deep" / "training"
    save_checkpoint(path, halfway, purpose="a", notes=[1, "two"])
    found = load_checkpoint(path, begun, purpose="a")
    assert found is not None
    assert same(found[0], halfway)
    assert bytes(found[1]) == b'[1,"two"]'
    assert same(advance(CONFIG, found[0], environment, None, 2)[0], whole)
    assert not same(halfway, whole)
    assert load_checkpoint(path, begun, purpose="b") is None
    assert load_checkpoint(tmp_path / "none", begun, purpose="a") is None
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InvalidInputError, match="expected a checkpoint"):
        load_checkpoint(path, begun, purpose="a")


def test_a_killed_training_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    path = tmp_path / "training"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.sim2rec.killed_training", str(path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        deadline = time.monotonic() + PATIENCE_S
        while not path.exists():
            assert process.poll() is None, "it ended without a checkpoint"
            assert time.monotonic() < deadline, "no checkpoint in time"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    left = path.read_bytes()
    resumed, whole = train(path), train(None)
    assert path.read_bytes() != left or len(resumed.curve) == 6
    assert same(resumed.actor, whole.actor)
    assert same(resumed.extractor, whole.extractor)
    told = [(each.iteration, each.test_return, each.entropy) for each in resumed.curve]
    assert told == [(each.iteration, each.test_return, each.entropy) for each in whole.curve]
    assert [each.iteration for each in resumed.curve] == [1, 2, 3, 4, 5, 6]


def test_bad_input_names_the_field(environment: LTSGroups) -> None:
    with pytest.raises(InvalidInputError, match=r"^code: expected 3 numbers, got 0"):
        begin(CONFIG, ActorConfig(code=3), environment, None, 0)
    extractor = blank_sadae(SADAEConfig(code=2, hidden=2), environment, 0)
    with pytest.raises(InvalidInputError, match=r"^code: expected 0 numbers, got 2"):
        begin(CONFIG, ActorConfig(), environment, extractor, 0)
    with pytest.raises(InvalidInputError, match=r"^users: expected at most 128"):
        begin(PPOConfig(users=1000), ActorConfig(), environment, None, 0)
