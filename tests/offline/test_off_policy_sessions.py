"""What one generation would have earned in a session, by the log of another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from croupier.offline.off_policy_sessions import clustered_error, off_policy_value
from croupier.offline.session_values import compare_over_sessions
from croupier.offline.sessions import LoggedSessions, logged_sessions
from croupier.policy.errors import NotEnoughDataError
from croupier.policy.generation import Generation, cold_start
from tests.offline.logs import EPOCH_US
from tests.policy.recurrent import random_policy, recurrent_generation
from tests.sim2rec.lts_sessions import DOCUMENTS, SESSIONS, LTSSessions

WORLD = LTSSessions(200, seed=11)


def generation(sharpness: float) -> Generation:
    actions = tuple(f"d{each}" for each in DOCUMENTS)
    policy = random_policy(2, actions=actions, observation=SESSIONS.state, sharpness=sharpness)
    return recurrent_generation("feed", 2, policy)


@pytest.fixture(scope="module")
def sessions() -> LoggedSessions:
    return logged_sessions(WORLD.log(cold_start("feed"), EPOCH_US), SESSIONS)


def test_it_is_the_estimate_with_intervals_of_users(sessions: LoggedSessions) -> None:
    served = generation(0.15)
    found = off_policy_value(sessions, served, confidence=0.95, seed=3)
    (same,) = (
        compare_over_sessions(sessions, {"it": served}, estimators=("sdr",), seed=3)
        .policies[0]
        .estimates
    )
    assert (found.value, found.ess) == (same.value, same.ess)
    assert (found.sessions, found.lower < found.value < found.upper) == (200, True)
    # Of users with a session each they are the ordinary ones, but for Student's distribution.
    wider = stats.t.ppf(0.975, 199) / stats.norm.ppf(0.975)
    assert found.upper - found.value == pytest.approx(wider * (same.upper - same.value), rel=0.01)
    # What it truly earns, by another log of its own: 1 in 1,000 of such intervals would miss it.
    own = logged_sessions(WORLD.log(served, EPOCH_US), SESSIONS).reward.sum(axis=1)
    wide = 3.3 * np.hypot((found.upper - found.value) / 1.96, stats.sem(own))
    assert abs(found.value - own.mean()) < wide


def test_errors_of_users_with_several_sessions_are_those_of_their_means() -> None:
    values = np.random.default_rng(1).normal(size=400)
    assert clustered_error(values, np.repeat(np.arange(100), 4)) == pytest.approx(
        stats.sem(values.reshape(100, 4).mean(axis=1))
    )


def test_a_log_that_says_too_little_says_so(sessions: LoggedSessions) -> None:
    few = np.arange(200) < 29
    with pytest.raises(NotEnoughDataError, match=r"expected 30 sessions of 10 users .* got 29"):
        off_policy_value(sessions.only(few), generation(0.15), confidence=0.95, seed=3)
    of_few = replace(sessions, user=np.repeat(np.arange(8), 25).astype(np.str_))
    with pytest.raises(NotEnoughDataError, match="expected 30 sessions of 10 users"):
        off_policy_value(of_few, generation(0.15), confidence=0.95, seed=3)
    with pytest.raises(NotEnoughDataError, match=r"expected sessions worth 30 .* got 200 worth"):
        off_policy_value(sessions, generation(4.0), confidence=0.95, seed=3)
