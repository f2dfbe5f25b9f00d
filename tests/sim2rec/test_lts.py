"""The environment against a scalar rendering of its formulas, and its edges."""

from __future__ import annotations

import doctest
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.policy.errors import InvalidInputError
from croupier.sim2rec import lts
from croupier.sim2rec.lts import (
    GROUP_MEANS,
    MAX_ENGAGEMENT,
    TEST_GROUP_MEAN,
    LTSConfig,
    LTSEnvironment,
    LTSNoise,
    UserPopulation,
    clickbait_scores,
    document_action,
    document_index,
    evaluation_config,
    training_configs,
    training_group_means,
)

NOISY = LTSConfig(
    mu_c=17.0, sd_c=1.5, sd_k=0.5, innovation_sd=0.3, kale_noise=2.0, horizon=60, documents=20
)


def scalar_episode(
    config: LTSConfig,
    *,
    memory: float,
    sensitivity: float,
    kale_mean: float,
    actions: list[float],
    engagement_noise: list[float],
    innovation_noise: list[float],
) -> dict[str, list[float]]:
    """One user's episode, written from the formulas with nothing of the code under test."""
    exposure = 0.5 / (1 - memory)
    columns: dict[str, list[float]] = {"reward": [], "exposure": [], "satisfaction": []}
    for action, noise, innovation in zip(actions, engagement_noise, innovation_noise, strict=True):
        c = math.floor((action + 1) / 2 * (config.documents - 1)) / config.documents
        sat = 1 / (1 + math.exp(-sensitivity * exposure))
        mean = (c * config.mu_c + (1 - c) * kale_mean) * sat
        columns["reward"].append(mean + (c * config.sd_c + (1 - c) * config.sd_k) * noise)
        exposure = memory * exposure - 2 * (c - 0.5) + config.innovation_sd * innovation
        columns["exposure"].append(exposure)
        columns["satisfaction"].append(1 / (1 + math.exp(-sensitivity * exposure)))
    return columns


def play(
    environment: LTSEnvironment, actions: np.ndarray[Any, Any], noises: list[LTSNoise]
) -> dict[str, np.ndarray[Any, Any]]:
    columns: dict[str, list[np.ndarray[Any, Any]]] = {
        "reward": [],
        "exposure": [],
        "satisfaction": [],
        "observation": [],
    }
    for action, noise in zip(actions, noises, strict=True):
        step = environment.step(action, noise)
        columns["reward"].append(step.reward)
        columns["observation"].append(step.observation)
        columns["exposure"].append(environment.state.exposure)
        columns["satisfaction"].append(environment.state.satisfaction)
    return {name: np.array(values) for name, values in columns.items()}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "config", [LTSConfig(), LTSConfig(log_sample=False), NOISY], ids=["test", "uniform", "noisy"]
)
def test_dynamics_equal_a_scalar_rendering(config: LTSConfig, seed: int) -> None:
    rng = np.random.default_rng(seed)
    users = UserPopulation.draw(7, rng, log_sample=config.log_sample)
    environment = LTSEnvironment(config, users)
    environment.reset(rng)
    actions = rng.uniform(-1, 1, (config.horizon, 7))
    noises = [LTSNoise.draw(7, rng) for _ in range(config.horizon)]
    kale = environment.state.kale_mean
    got = play(environment, actions, noises)
    for user in range(7):
        expected = scalar_episode(
            config,
            memory=float(users.memory[user]),
            sensitivity=float(users.sensitivity[user]),
            kale_mean=float(kale[user]),
            actions=actions[:, user].tolist(),
            engagement_noise=[float(noise.engagement[user]) for noise in noises],
            innovation_noise=[float(noise.innovation[user]) for noise in noises],
        )
        for name, values in expected.items():
            np.testing.assert_allclose(got[name][:, user], values, rtol=0, atol=1e-12)


def test_all_users_at_once_equal_one_user_at_a_time() -> None:
    config = msgspec.structs.replace(NOISY, kale_noise=0.0)
    rng = np.random.default_rng(5)
    users = UserPopulation.draw(20, rng)
    actions = rng.uniform(-1, 1, (config.horizon, 20))
    noises = [LTSNoise.draw(20, rng) for _ in range(config.horizon)]
    environment = LTSEnvironment(config, users)
    environment.reset(rng)
    together = play(environment, actions, noises)
    for user in range(20):
        alone = LTSEnvironment(config, users.take([user]))
        alone.reset(np.random.default_rng(user))
        mine = slice(user, user + 1)
        single = play(
            alone,
            actions[:, mine],
            [LTSNoise(noise.engagement[mine], noise.innovation[mine]) for noise in noises],
        )
        for name in ("reward", "exposure", "satisfaction"):
            np.testing.assert_allclose(together[name][:, mine], single[name], rtol=0, atol=1e-12)
        # The group signal is a draw of its own in every environment; click and engagement aren't.
        np.testing.assert_allclose(
            together["observation"][:, mine, 1:], single["observation"][..., 1:], rtol=0, atol=1e-12
        )


def trace(config: LTSConfig, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    users = UserPopulation.draw(5, rng, log_sample=config.log_sample)
    environment = LTSEnvironment(config, users)
    seen = [environment.reset(rng)]
    for _ in range(10):
        step = environment.step(rng.uniform(-1, 1, 5))
        seen += [step.observation, step.reward]
    return b"".join(part.tobytes() for part in seen)


def test_a_seed_determines_everything() -> None:
    assert trace(NOISY, 1) == trace(NOISY, 1)
    assert trace(NOISY, 1) != trace(NOISY, 2)


def test_a_seed_means_the_same_engagement_noise_whatever_the_scales() -> None:
    rewards = []
    for scale in (0.0, 1e-300):
        config = LTSConfig(innovation_sd=scale, kale_noise=scale, sd_k=1.0)
        environment = LTSEnvironment(config, UserPopulation(np.array([0.5]), np.array([0.5])))
        environment.reset(np.random.default_rng(0))
        rewards.append([environment.show([0]).reward[0] for _ in range(20)])
    np.testing.assert_allclose(rewards[0], rewards[1], rtol=0, atol=1e-12)


def test_clickbait_lowers_satisfaction_and_kale_raises_it() -> None:
    users = UserPopulation(np.full(2, 0.8), np.full(2, 0.5))
    environment = LTSEnvironment(LTSConfig(), users)
    environment.reset(np.random.default_rng(0))
    before = environment.state.satisfaction
    environment.step([-1.0, 1.0])
    after = environment.state.satisfaction
    assert after[0] > before[0]
    assert after[1] < before[1]


def test_observation_is_signal_click_and_clipped_engagement() -> None:
    config = LTSConfig(mu_c=100.0, mu_k=0.0, sd_c=50.0, sd_k=50.0)
    rng = np.random.default_rng(3)
    environment = LTSEnvironment(config, UserPopulation.draw(400, rng))
    first = environment.reset(rng)
    assert first.shape == (400, 3)
    assert not first[:, 1:].any()
    for action in (-1.0, 1.0):
        step = environment.step(np.full(400, action))
        np.testing.assert_array_equal(step.observation[:, 0], first[:, 0])
        assert (step.observation[:, 1] == 1.0).all()
        np.testing.assert_array_equal(
            step.observation[:, 2], np.clip(step.reward, 0.0, MAX_ENGAGEMENT)
        )
        assert (step.reward < 0.0).any()
    assert (step.reward > MAX_ENGAGEMENT).any()


def test_signal_is_normal_around_the_group_mean_and_new_at_every_reset() -> None:
    rng = np.random.default_rng(4)
    n = 20_000
    environment = LTSEnvironment(LTSConfig(mu_c=9.0), UserPopulation.draw(n, rng))
    first, second = environment.reset(rng)[:, 0], environment.reset(rng)[:, 0]
    for signal in (first, second):
        assert abs(signal.mean() - 9.0) < 4 * 3.0 / math.sqrt(n)
        assert abs(signal.std() - 3.0) < 4 * 3.0 / math.sqrt(2 * n)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(n)


def test_kale_noise_is_uniform_clipped_and_new_at_every_reset() -> None:
    rng = np.random.default_rng(6)
    environment = LTSEnvironment(
        LTSConfig(mu_k=1.0, kale_noise=2.0), UserPopulation.draw(4000, rng)
    )
    environment.reset(rng)
    first = environment.state.kale_mean
    assert first.min() == 0.0
    assert abs((first == 0.0).mean() - 0.25) < 0.03
    assert 2.9 < first.max() <= 3.0
    environment.reset(rng)
    assert (environment.state.kale_mean != first).mean() > 0.9


def test_population_ranges_and_distribution() -> None:
    rng = np.random.default_rng(7)
    drawn = UserPopulation.draw(20_000, rng)
    assert len(drawn) == 20_000
    for values in (drawn.memory, drawn.sensitivity):
        assert math.log(1.01) <= values.min() < values.max() <= math.log(2.6)
        # E exp(ln U[1.01, 2.6]) = 1.805, with standard deviation 1.59 / sqrt(12).
        assert abs(np.exp(values).mean() - 1.805) < 4 * 1.59 / math.sqrt(12 * 20_000)
    uniform = UserPopulation.draw(20_000, rng, log_sample=False)
    assert 0.7 <= uniform.memory.min() < uniform.memory.max() <= 0.9
    assert 0.4 <= uniform.sensitivity.min() < uniform.sensitivity.max() <= 0.6
    assert abs(np.corrcoef(drawn.memory, drawn.sensitivity)[0, 1]) < 0.03


def test_population_is_a_read_only_copy() -> None:
    memory = np.array([0.2, 0.4])
    users = UserPopulation(memory, np.array([0.1, 0.3]))
    memory[0] = 0.9
    assert users.memory[0] == 0.2
    with pytest.raises(ValueError, match="read-only"):
        users.memory[0] = 0.5
    np.testing.assert_allclose(users.initial_exposure, [0.625, 0.5 / 0.6])
    np.testing.assert_array_equal(users.take([1, 0, 1]).sensitivity, [0.3, 0.1, 0.3])


@pytest.mark.parametrize(
    ("level", "means"),
    [
        (2, (6, 7, 8, 9, 10, 11, 17, 18, 19, 20, 21)),
        (3, (6, 7, 8, 9, 10, 18, 19, 20, 21)),
        (4, (6, 7, 8, 9, 19, 20, 21)),
    ],
)
def test_training_families(level: int, means: tuple[float, ...]) -> None:
    assert training_group_means(level) == means
    base = LTSConfig(horizon=30, kale_noise=0.5)
    configs = training_configs(level, base)
    assert tuple(config.mu_c for config in configs) == means
    assert all(config.horizon == 30 and config.kale_noise == 0.5 for config in configs)
    assert tuple(config.mu_c for config in training_configs(level)) == means


def test_evaluation_config_is_the_test_group_without_simulator_error() -> None:
    assert evaluation_config() == LTSConfig()
    config = evaluation_config(LTSConfig(mu_c=6.0, kale_noise=1.0, horizon=5))
    assert (config.mu_c, config.kale_noise, config.horizon) == (14.0, 0.0, 5)
    assert TEST_GROUP_MEAN in GROUP_MEANS
    assert len(GROUP_MEANS) == 16


def test_the_horizon_ends_the_episode_and_a_reset_starts_another() -> None:
    rng = np.random.default_rng(8)
    environment = LTSEnvironment(LTSConfig(horizon=3), UserPopulation.draw(2, rng))
    environment.reset(rng)
    assert [environment.step(np.zeros(2)).done for _ in range(3)] == [False, False, True]
    with pytest.raises(InvalidInputError, match=r"state\.step: expected a reset"):
        environment.step(np.zeros(2))
    environment.reset(rng)
    assert environment.state.step == 0
    assert not environment.step(np.zeros(2)).done


def test_the_docstring_examples_run() -> None:
    assert doctest.testmod(lts).failed == 0
    assert doctest.testmod(lts).attempted > 0


@settings(deadline=None)
@given(
    documents=st.integers(2, 200),
    actions=st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=20),
)
def test_actions_and_documents(documents: int, actions: list[float]) -> None:
    shown = document_index(actions, documents)
    assert shown.dtype == np.int64
    assert ((shown >= 0) & (shown < documents)).all()
    every = np.arange(documents)
    np.testing.assert_array_equal(
        document_index(document_action(every, documents), documents), every
    )
    assert document_index([-1.0, 1.0], documents).tolist() == [0, documents - 1]
    scores = clickbait_scores(documents)
    assert scores[0] == 0.0
    assert scores[-1] == (documents - 1) / documents


@settings(deadline=None, max_examples=60)
@given(
    memory=st.lists(st.floats(0.0, 0.999), min_size=1, max_size=4),
    sensitivity=st.floats(0.0, 50.0),
    mu_c=st.floats(0.0, 100.0),
    mu_k=st.floats(0.0, 100.0),
    documents=st.integers(2, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_parameters_keep_state_and_reward_in_range(
    *, memory: list[float], sensitivity: float, mu_c: float, mu_k: float, documents: int, seed: int
) -> None:
    config = LTSConfig(mu_c=mu_c, mu_k=mu_k, documents=documents, sd_c=0, sd_k=0, horizon=25)
    users = UserPopulation(np.array(memory), np.full(len(memory), sensitivity))
    rng = np.random.default_rng(seed)
    environment = LTSEnvironment(config, users)
    environment.reset(rng)
    reach = 1.0 / (1.0 - users.memory)
    while environment.state.step < config.horizon:
        reward = environment.show(rng.integers(0, documents, len(users))).reward
        state = environment.state
        assert ((reward >= 0.0) & (reward <= max(mu_c, mu_k) * (1 + 1e-12))).all()
        assert ((state.satisfaction >= 0.0) & (state.satisfaction <= 1.0)).all()
        assert (np.abs(state.exposure) <= reach * (1 + 1e-12)).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mu_c", -1.0),
        ("mu_c", 101.0),
        ("mu_k", math.nan),
        ("sd_c", -0.1),
        ("sd_k", math.inf),
        ("innovation_sd", -1),
        ("signal_sd", "3"),
        ("kale_noise", True),
        ("horizon", 0),
        ("horizon", 1.5),
        ("documents", 1),
        ("documents", True),
    ],
)
def test_bad_config_names_the_field(field: str, value: object) -> None:
    values: dict[str, Any] = {field: value}
    with pytest.raises(InvalidInputError) as caught:
        LTSConfig(**values)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("memory", "sensitivity", "field"),
    [
        ([], [], "memory"),
        ([[0.1]], [0.1], "memory"),
        (["a"], [0.1], "memory"),
        ([0.1, 1.0], [0.1, 0.1], "memory[1]"),
        ([-0.1], [0.1], "memory[0]"),
        ([math.nan], [0.1], "memory[0]"),
        ([0.1], [0.1, 0.2], "sensitivity"),
        ([0.1, 0.2], [0.1, -0.2], "sensitivity[1]"),
        ([0.1], [math.inf], "sensitivity[0]"),
    ],
)
def test_bad_population_names_the_field(memory: Any, sensitivity: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        UserPopulation(memory, sensitivity)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("method", "argument", "field"),
    [
        ("step", [0.0], "actions"),
        ("step", 0.0, "actions"),
        ("step", ["a", "b"], "actions"),
        ("step", [0.0, 1.1], "actions[1]"),
        ("step", [math.nan, 0.0], "actions[0]"),
        ("show", [1], "shown"),
        ("show", [1.0, 2.0], "shown"),
        ("show", [0, 30], "shown[1]"),
        ("show", [-1, 0], "shown[0]"),
    ],
)
def test_bad_actions_name_the_field_and_change_nothing(
    method: str, argument: object, field: str
) -> None:
    rng = np.random.default_rng(9)
    environment = LTSEnvironment(LTSConfig(), UserPopulation.draw(2, rng))
    environment.reset(rng)
    before = environment.state
    with pytest.raises(InvalidInputError) as caught:
        getattr(environment, method)(argument)
    assert caught.value.field == field
    assert environment.state is before


def test_other_bad_input_names_the_field() -> None:
    rng = np.random.default_rng(10)
    environment = LTSEnvironment(LTSConfig(), UserPopulation.draw(2, rng))
    with pytest.raises(InvalidInputError, match=r"^state: expected a call of reset"):
        environment.step([0.0, 0.0])
    environment.reset(rng)
    with pytest.raises(InvalidInputError, match=r"^noise\.engagement"):
        environment.step([0.0, 0.0], LTSNoise(np.zeros(3), np.zeros(2)))
    with pytest.raises(InvalidInputError, match=r"^noise\.innovation"):
        environment.step([0.0, 0.0], LTSNoise(np.zeros(2), np.zeros(1)))
    with pytest.raises(InvalidInputError, match=r"^n: "):
        UserPopulation.draw(0, rng)
    with pytest.raises(InvalidInputError, match=r"^level: expected one of \(2, 3, 4\), got 5"):
        training_group_means(5)
    with pytest.raises(InvalidInputError, match=r"^indices\[0\]"):
        document_action([30], 30)
    with pytest.raises(InvalidInputError, match=r"^documents"):
        document_index([0.0], 1)
    with pytest.raises(InvalidInputError, match=r"^mu_c"):
        msgspec.structs.replace(LTSConfig(), mu_c=-1.0)
