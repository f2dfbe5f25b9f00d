"""The JAX rendering of LTS against the NumPy reference."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from croupier.policy.errors import InvalidInputError
from croupier.sim2rec.lts import (
    LTSConfig,
    LTSNoise,
    UserPopulation,
    clickbait_scores,
    initial_state,
    observe,
    training_configs,
    transition,
)
from croupier.sim2rec.lts_groups import LTSGroups, draw_groups

NOISY = LTSConfig(sd_c=0.3, sd_k=0.2, innovation_sd=0.1, kale_noise=2.0)


def drawn(configs: tuple[LTSConfig, ...], users: int, seed: int) -> LTSGroups:
    rng = np.random.default_rng(seed)
    return draw_groups(
        configs,
        [UserPopulation.draw(users, rng, log_sample=each.log_sample) for each in configs],
    )


@pytest.mark.parametrize("base", [LTSConfig(), NOISY], ids=["benchmark", "noisy"])
@pytest.mark.parametrize(("double", "tolerance"), [(True, 1e-9), (False, 1e-5)])
def test_a_thousand_trajectories_equal_the_reference(
    base: LTSConfig, *, double: bool, tolerance: float
) -> None:
    # In single precision 1e-5 is relative too: users with a long memory sum up rounding errors.
    with jax.enable_x64(double):
        compare_with_the_reference(base, tolerance)


def compare_with_the_reference(base: LTSConfig, tolerance: float) -> None:
    configs = training_configs(3, base)
    users = 112  # of each of nine groups: 1,008 trajectories
    rng = np.random.default_rng(11)
    populations = [UserPopulation.draw(users, rng) for _ in configs]
    groups = draw_groups(configs, populations)
    show = eqx.filter_jit(groups.show)

    # The reference draws its own noise of a reset, so the same draws are handed to both.
    seeds = rng.integers(0, 2**32, len(configs))
    states = [
        initial_state(config, population, np.random.default_rng(seed))
        for config, population, seed in zip(configs, populations, seeds, strict=True)
    ]
    kale, signal = [], []
    for seed in seeds:
        again = np.random.default_rng(seed)
        kale.append(again.uniform(-1.0, 1.0, users))
        signal.append(again.standard_normal(users))
    state, observation = groups.start(jnp.asarray(np.stack(kale)), jnp.asarray(np.stack(signal)))
    np.testing.assert_allclose(
        observation, np.stack([observe(each, None) for each in states]), atol=1e-5
    )
    for _ in range(base.horizon):
        shown = rng.integers(0, base.documents, (len(configs), users))
        noise = rng.standard_normal((2, len(configs), users))
        state, observation, reward = show(
            state, jnp.asarray(shown), jnp.asarray(noise[0]), jnp.asarray(noise[1])
        )
        for group, config in enumerate(configs):
            states[group], expected = transition(
                config,
                populations[group],
                states[group],
                shown[group],
                LTSNoise(engagement=noise[0, group], innovation=noise[1, group]),
            )
            np.testing.assert_allclose(reward[group], expected, rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(
                observation[group], observe(states[group], expected), rtol=tolerance, atol=tolerance
            )
        exposure = np.stack([each.exposure for each in states])
        np.testing.assert_allclose(state.exposure, exposure, rtol=tolerance, atol=tolerance)
    assert int(state.step) == base.horizon


def test_a_key_determines_an_episode_and_has_the_noise_that_was_asked_for() -> None:
    groups = drawn((msgspec.structs.replace(NOISY, mu_c=9.0),), 20_000, 1)
    state, observation = groups.reset(jax.random.key(3))
    again, _ = groups.reset(jax.random.key(3))
    np.testing.assert_array_equal(state.group_signal, again.group_signal)
    n = 20_000
    # Four standard errors: a false alarm in 16,000.
    assert abs(float(observation[..., 0].mean()) - 9.0) < 4 * 3.0 / np.sqrt(n)
    assert abs(float(observation[..., 0].std()) - 3.0) < 4 * 3.0 / np.sqrt(2 * n)
    assert abs(float(state.kale_mean.mean()) - 4.0) < 4 * 2.0 / np.sqrt(3 * n)
    assert 2.0 <= float(state.kale_mean.min()) < float(state.kale_mean.max()) <= 6.0
    action = jnp.full(groups.shape, 15)
    after, _, reward = groups.step(jax.random.key(4), state, action)
    clickbait = clickbait_scores(30)[15]
    mean = (clickbait * 9.0 + (1 - clickbait) * state.kale_mean) * groups.satisfaction(state)
    for noise, sd in (
        (reward - mean, 0.25),
        (after.exposure - groups.memory * state.exposure + 2 * (clickbait - 0.5), 0.1),
    ):
        assert abs(float(noise.mean())) < 4 * sd / np.sqrt(n)
        assert abs(float(noise.std()) - sd) < 4 * sd / np.sqrt(2 * n)


def test_users_and_groups_are_taken_whole() -> None:
    groups = drawn(training_configs(4), 50, 2)
    some = groups.take_users(jax.random.key(0), 20)
    assert some.shape == (7, 20)
    everyone = {
        (group, float(m), float(h))
        for group in range(7)
        for m, h in zip(groups.memory[group], groups.sensitivity[group], strict=True)
    }
    taken = {
        (group, float(m), float(h))
        for group in range(7)
        for m, h in zip(some.memory[group], some.sensitivity[group], strict=True)
    }
    assert len(taken) == 140
    assert taken < everyone
    two = groups.take_simulators([0, 6])
    assert two.shape == (2, 50)
    assert two.mu_c.ravel().tolist() == [6.0, 21.0]
    np.testing.assert_array_equal(two.memory, groups.memory[np.array([0, 6])])


def test_bad_input_names_the_field() -> None:
    rng = np.random.default_rng(9)
    users = UserPopulation.draw(2, rng)
    with pytest.raises(InvalidInputError, match=r"^configs: expected at least one"):
        draw_groups([], [])
    with pytest.raises(InvalidInputError, match=r"^populations: expected one per group"):
        draw_groups([LTSConfig()], [users, users])
    with pytest.raises(InvalidInputError, match=r"^configs\[1\]\.horizon"):
        draw_groups([LTSConfig(), LTSConfig(horizon=3)], [users, users])
    with pytest.raises(InvalidInputError, match=r"^populations: expected as many"):
        draw_groups([LTSConfig()] * 2, [users, UserPopulation.draw(3, rng)])
