"""User simulators that are learned from LTS users, and what is done about their errors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.sim2rec.environment import key_of
from croupier.sim2rec.learned_users import first_members, learned_users, wrong_trends
from croupier.sim2rec.user_model import FittedUsers, fit_users
from croupier.sim2rec.user_model_config import SimulatorsConfig, UserModelConfig
from tests.sim2rec.populations import SCORES, uniform_sessions

if TYPE_CHECKING:
    from croupier.offline.sessions import LoggedSessions

STEPS = 10
CONFIG = UserModelConfig(members=3, memory=16, hidden=32, steps=600, every=100, sessions=64)
SIMULATORS = SimulatorsConfig(users=200, horizon=STEPS)


@pytest.fixture(scope="module")
def sessions() -> LoggedSessions:
    return uniform_sessions(500, STEPS, seed=1)


@pytest.fixture(scope="module")
def fitted(sessions: LoggedSessions) -> FittedUsers:
    return fit_users(sessions, CONFIG, seed=2)


def test_what_is_learned_tells_users_it_has_not_seen(fitted: FittedUsers) -> None:
    assert fitted.held_out.sum() == 100
    assert fitted.curve[-1] < fitted.curve[0]
    assert fitted.steps == CONFIG.every * (1 + int(np.argmin(fitted.curve)))
    errors = fitted.one_step
    assert errors.rmse < 0.8 * errors.naive_rmse
    # 1,000 steps of 100 users, whose errors go together.
    assert 0.85 < errors.coverage < 0.95
    assert errors.calibration > 0.0
    rolled = fitted.roll_outs
    assert rolled.by_step.shape == (STEPS,)
    # Without any outcome told, users still differ, so the gain is a smaller one.
    assert rolled.by_step.mean() < rolled.naive_by_step.mean()
    assert abs(rolled.return_bias) < rolled.return_error


def test_members_have_learned_from_different_users(fitted: FittedUsers) -> None:
    weights = np.asarray(fitted.models.recurrent.weight)
    assert weights.shape[0] == CONFIG.members
    assert all(np.abs(weights[0] - each).max() > 0.01 for each in weights[1:])


def test_the_same_seed_gives_the_same_models(sessions: LoggedSessions) -> None:
    few = msgspec.structs.replace(CONFIG, members=2, steps=20, every=10)
    one, two, other = (fit_users(sessions, few, seed=seed) for seed in (3, 3, 4))
    same = jax.tree.leaves(eqx.filter(one.models, eqx.is_array))
    for a, b in zip(same, jax.tree.leaves(eqx.filter(two.models, eqx.is_array)), strict=True):
        assert np.array_equal(a, b)
    assert one.curve == two.curve != other.curve


def test_nothing_beyond_a_session_s_end_is_learned(sessions: LoggedSessions) -> None:
    few = msgspec.structs.replace(CONFIG, members=2, steps=20, every=10)
    steps = sessions.steps.copy()
    steps[::2] = 6
    live = np.arange(STEPS) < steps[:, None]
    cut = replace(sessions, steps=steps, row=np.where(live, sessions.row, -1))
    other = replace(
        cut,
        reward=np.where(live, cut.reward, 99.0),
        state=np.where(live[:, :, None], cut.state, -99.0),
        action=np.where(live, cut.action, 0),
    )
    first, second = (fit_users(each, few, seed=5) for each in (cut, other))
    assert first.curve == pytest.approx(second.curve, rel=1e-5)
    assert first.one_step.rmse == pytest.approx(second.one_step.rmse, rel=1e-5)


def test_rewards_that_are_0_or_1_have_chances() -> None:
    clicks = uniform_sessions(400, STEPS, seed=6, reward=lambda seen: (seen > 4.0).astype(float))
    found = fit_users(clicks, msgspec.structs.replace(CONFIG, members=2, steps=300), seed=7)
    assert found.models.binary
    assert found.one_step.rmse < found.one_step.naive_rmse
    assert np.isnan(found.one_step.coverage)
    users = learned_users(found.models, clicks, SIMULATORS, seed=8)
    _, _, reward = users.step(key_of(9), users.start, jnp.ones(users.shape, jnp.int32))
    assert set(np.unique(np.asarray(reward))) == {0.0, 1.0}


def test_a_simulator_is_one_member_and_knows_what_all_expect(
    fitted: FittedUsers, sessions: LoggedSessions
) -> None:
    users = learned_users(fitted.models, sessions, SIMULATORS, seed=10)
    assert users.shape == (CONFIG.members, 200)
    state, observation = users.reset(key_of(11))
    assert observation.shape == (*users.shape, users.observations)
    assert users.secret(state).shape == (*users.shape, users.secrets)
    action = jnp.full(users.shape, 2)
    still = jnp.zeros((*users.shape, 1 + users.observations))
    found = users.expect(state, action)
    after, following, reward = users.respond(state, action, still)
    for member in range(CONFIG.members):
        arrays, rest = eqx.partition(users.models, eqx.is_array)
        leaves, shape = jax.tree.flatten(arrays)
        own = eqx.combine(jax.tree.unflatten(shape, [each[member] for each in leaves]), rest)
        told = state.memory[member, :, member], observation[member], action[member]
        assert np.asarray(reward[member]) == pytest.approx(
            np.asarray(found.mean[member, :, member]), rel=1e-5
        )
        assert np.asarray(reward[member]) == pytest.approx(
            np.asarray(own.reward(*told).mean), rel=1e-5
        )
        seen = np.asarray(own.following(*told, reward[member]).mean)
        lowest, highest = np.asarray(users.lowest), np.asarray(users.highest)
        assert np.asarray(following[member]) == pytest.approx(
            np.clip(seen, lowest, highest), rel=1e-4, abs=1e-4
        )
    assert np.abs(np.asarray(after.memory) - np.asarray(state.memory)).max() > 0.01

    wary = learned_users(
        fitted.models, sessions, msgspec.structs.replace(SIMULATORS, penalty=2.0), seed=10
    )
    _, _, less = wary.respond(state, action, still)
    disagreement = np.asarray(found.mean).std(axis=-1)
    assert np.asarray(reward - less) == pytest.approx(2.0 * disagreement, rel=1e-3, abs=1e-5)


def test_parts_of_an_environment_are_its_own(fitted: FittedUsers, sessions: LoggedSessions) -> None:
    users = learned_users(fitted.models, sessions, SIMULATORS, seed=12)
    second = users.take_simulators([1])
    assert second.shape == (1, 200)
    action = jnp.zeros((3, 200), jnp.int32)
    draws = jax.random.normal(key_of(13), (3, 200, 1 + users.observations))
    _, _, whole = users.respond(users.start, action, draws)
    _, _, part = second.respond(second.start, action[:1], draws[1:2])
    assert np.asarray(part[0]) == pytest.approx(np.asarray(whole[1]), rel=1e-5)
    some = users.take_users(key_of(14), 50)
    assert some.shape == (3, 50)


def test_every_member_has_a_simulator_of_each_group(
    fitted: FittedUsers, sessions: LoggedSessions
) -> None:
    # Groups are told apart by what is seen first: the signal, while nobody has engaged yet.
    high = sessions.state[:, 0, 0] > 14.0
    two = replace(sessions, groups=("low", "high"), group=high.astype(np.int64))
    config = msgspec.structs.replace(SIMULATORS, users=50, by_group=True)
    users = learned_users(fitted.models, two, config, seed=21)
    assert users.shape == (2 * CONFIG.members, 50)
    assert np.asarray(users.member).tolist() == [0, 1, 2, 0, 1, 2]
    _, observation = users.reset(key_of(22))
    assert users.group_items(observation).shape == (6, 50, 1)
    seen_high = np.asarray(users.group_items(observation))[..., 0] > 14.0
    assert not seen_high[:3].any()
    assert seen_high[3:].all()
    first = learned_users(first_members(fitted.models, 1), two, config, seed=21)
    assert first.shape == (2, 50)
    still = jnp.zeros((2, 50, 1 + users.observations))
    action = jnp.ones((2, 50), jnp.int32)
    alone = msgspec.structs.replace(config, penalty=3.0)
    wary = learned_users(first_members(fitted.models, 1), two, alone, seed=21)
    # A single member never disagrees.
    plain, told = (each.respond(each.start, action, still)[2] for each in (first, wary))
    assert np.asarray(told) == pytest.approx(np.asarray(plain), abs=1e-5)


def test_an_action_without_support_ends_a_roll_out(
    fitted: FittedUsers, sessions: LoggedSessions
) -> None:
    never = replace(sessions, action=np.where(sessions.action == 4, 3, sessions.action))
    config = msgspec.structs.replace(SIMULATORS, support=0.01, pessimism=0.0)
    users = learned_users(fitted.models, never, config, seed=15)
    worst = float(sessions.reward.min())
    assert users.exit_reward == pytest.approx(worst)
    state, _ = users.reset(key_of(16))
    state, _, fine = users.step(key_of(17), state, jnp.full(users.shape, 3))
    assert np.asarray(fine).mean() > worst
    for action in (4, 3):
        state, _, out = users.step(key_of(18), state, jnp.full(users.shape, action))
        assert (np.asarray(out) == np.float32(worst)).all()


def test_users_whose_trend_is_wrong_are_left_out(
    fitted: FittedUsers, sessions: LoggedSessions
) -> None:
    """LTS users are engaged the more by clickbait at once, so no prior can say the opposite."""
    config = msgspec.structs.replace(SIMULATORS, trend=SCORES)
    users = learned_users(fitted.models, sessions, config, seed=19)
    for member in range(CONFIG.members):
        memory = users.start.memory[member].swapaxes(0, 1)
        wrong = wrong_trends(users.models, memory, users.start.observation[member], SCORES)
        assert not wrong[member].any()
    against = msgspec.structs.replace(SIMULATORS, trend=tuple(-each for each in SCORES))
    with pytest.raises(NotEnoughDataError, match="trend is right"):
        learned_users(fitted.models, sessions, against, seed=19)


def test_truncated_roll_outs_start_anywhere(fitted: FittedUsers, sessions: LoggedSessions) -> None:
    config = msgspec.structs.replace(SIMULATORS, starts="any", horizon=3)
    users = learned_users(fitted.models, sessions, config, seed=20)
    assert users.horizon == 3
    assert users.session == STEPS
    past = users.past()
    assert past is not None
    # All end within the session, and those that would not have begin earlier.
    steps = np.asarray(past.steps)
    assert np.unique(steps).tolist() == list(range(8))
    assert (steps == 7).sum() > 2 * (steps == 6).sum()
    # At first steps nothing is remembered, later something is.
    remembered = np.abs(np.asarray(users.start.memory)).max(axis=(2, 3)) > 0.0
    assert 0.8 < remembered.mean() < 0.98
    np.testing.assert_array_equal(remembered, steps > 0)
    # Where they stand, and who they are, is what the log says of the session's steps.
    logged = {
        tuple(row): each for each, row in enumerate(sessions.state[:, :7, 1].astype(np.float32))
    }
    observation = np.asarray(past.observation)
    for user in range(20):
        session = logged[tuple(observation[0, user, :, 1])]
        step = steps[0, user]
        np.testing.assert_array_equal(past.action[0, user], sessions.action[session, :7])
        assert np.asarray(users.start.observation)[0, user] == pytest.approx(
            sessions.state[session, step], rel=1e-5
        )
        assert np.asarray(past.previous)[0, user] == (
            sessions.action[session, step - 1] if step else -1
        )
        assert np.asarray(users.group_items(users.start.observation))[0, user] == pytest.approx(
            sessions.state[session, 0, [0]], rel=1e-5
        )
    some = users.take_users(key_of(21), 50).past()
    assert some is not None
    assert some.observation.shape == (3, 50, 7, 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: UserModelConfig(members=1), "^members: expected at least 2"),
        (lambda: UserModelConfig(steps=10, every=3), "^every: expected to divide"),
        (lambda: UserModelConfig(rate=0.0), "^rate: "),
        (lambda: UserModelConfig(held_out=1.0), "^held_out: "),
        (lambda: SimulatorsConfig(users=0), "^users: "),
        (lambda: SimulatorsConfig(penalty=-1.0), "^penalty: "),
        (lambda: SimulatorsConfig(support=1.0), "^support: "),
        (lambda: SimulatorsConfig(pessimism=2.0), "^pessimism: "),
    ],
)
def test_settings_are_checked(config: type[UserModelConfig], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        config()


def test_logs_and_scores_are_checked(fitted: FittedUsers, sessions: LoggedSessions) -> None:
    with pytest.raises(NotEnoughDataError, match="sessions of 20 users, got 5"):
        fit_users(uniform_sessions(5, STEPS, seed=0), CONFIG, seed=0)
    other = replace(sessions, actions=("a", "b"))
    with pytest.raises(InvalidInputError, match=r"^sessions: expected 5 actions, got 2"):
        learned_users(fitted.models, other, SIMULATORS, seed=0)
    longer = msgspec.structs.replace(SIMULATORS, horizon=STEPS + 1)
    with pytest.raises(InvalidInputError, match=r"^horizon: expected at most the 10 steps"):
        learned_users(fitted.models, sessions, longer, seed=0)
    flat = msgspec.structs.replace(SIMULATORS, trend=(1.0,) * 5)
    with pytest.raises(InvalidInputError, match=r"^trend: expected 5 scores that differ"):
        learned_users(fitted.models, sessions, flat, seed=0)
