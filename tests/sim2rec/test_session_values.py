"""Sequential evaluation of real decisions in the lake's columns, against roll-outs in LTS."""

from __future__ import annotations

import msgspec
import numpy as np
import polars as pl
import pytest
from scipy import stats

from croupier.offline.ope import SESSION_ESTIMATORS
from croupier.offline.policies import FixedAction
from croupier.offline.session_values import compare_over_sessions, history_features
from croupier.offline.sessions import logged_sessions
from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.policy.exploration import Uniform
from croupier.policy.generation import Generation, cold_start
from tests.offline.logs import EPOCH_US
from tests.sim2rec.lts_sessions import (
    HOUR,
    MINUTE,
    SESSIONS,
    STEPS,
    LTSSessions,
    cautious,
    cautious_policy,
)

POLICY = cold_start("feed")


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    return LTSSessions(300, seed=1).log(POLICY, EPOCH_US)


def test_sessions_are_put_together_again(log: pl.DataFrame) -> None:
    sessions = logged_sessions(log.sample(fraction=1.0, shuffle=True, seed=2), SESSIONS)
    assert len(sessions) == 300
    assert (sessions.steps == STEPS).all()
    assert sessions.groups == ("delft",)
    assert sessions.actions == ("d0", "d10", "d20", "d29")
    assert sorted(sessions.user.tolist()) == sorted(map(str, range(300)))
    rows = log.with_columns(user=pl.col("context").str.json_path_match("$.user.id"))
    for i in (0, 17, 299):
        own = rows.filter(pl.col("user") == sessions.user[i]).sort("ts")
        assert sessions.reward[i].tolist() == own["reward"].to_list()
        assert sessions.propensity[i].tolist() == own["propensity"].to_list()
        assert [sessions.actions[a] for a in sessions.action[i]] == own["action_id"].to_list()
        engaged = own["context"].str.json_path_match("$.engagement").cast(pl.Float64)
        assert sessions.state[i, :, 1] == pytest.approx(engaged.to_numpy(), rel=1e-12)
    assert sessions.eligible.all()


def test_a_pause_and_a_horizon_end_a_session(log: pl.DataFrame) -> None:
    later = log.with_columns(
        ts=pl.when(pl.col("ts").dt.minute() < pl.col("ts").dt.minute().min() + 4)
        .then(pl.col("ts"))
        .otherwise(pl.col("ts") + pl.duration(minutes=30))
    )
    apart = logged_sessions(later, SESSIONS)
    assert sorted(set(apart.steps.tolist())) == [2, 4]
    assert len(apart) == 600
    features = history_features(apart)
    assert (features[~apart.live] == 0.0).all()
    assert (features[:, 0, 2:] == 0.0).all()

    short = logged_sessions(log, msgspec.structs.replace(SESSIONS, horizon=4))
    assert sorted(set(short.steps.tolist())) == [2, 4]
    some = short.only(short.steps == 4)
    assert len(some) == 300
    assert len(some.interactions) == 1200
    assert some.of_rows(some.interactions["reward"].to_numpy()).tolist() == some.reward.tolist()


def test_estimates_are_what_roll_outs_earn() -> None:
    """Six logs of 400 sessions; 95% intervals of a policy that looks at what it sees."""
    names = ("wpdis", "sdr", "wdr", "mdr", "wmdr")
    covered = dict.fromkeys(names, 0)
    for seed in range(6):
        world = LTSSessions(400, seed=seed)
        found = compare_over_sessions(
            logged_sessions(world.log(POLICY, EPOCH_US), SESSIONS),
            {"cautious": cautious_policy, "logged": None},
            estimators=names,
        )
        truth = world.earns(cautious)
        for estimate in found.policies[0].estimates:
            covered[estimate.estimator] += estimate.lower <= truth <= estimate.upper
        assert found.policies[1].estimates[0].n == 400
    for name, count in covered.items():
        assert stats.binomtest(count, 6, 0.95).pvalue > 0.001, (name, count)


def test_the_log_s_own_policy_earns_the_mean_return(log: pl.DataFrame) -> None:
    sessions = logged_sessions(log, SESSIONS)
    found = compare_over_sessions(
        sessions, {"logged": None, "uniform": Generation("feed", 1, Uniform(), None, None)}
    )
    mean = sessions.reward.sum(axis=1).mean()
    assert found.policies[0].estimates[0].value == pytest.approx(mean)
    by_name = {each.estimator: each for each in found.policies[1].estimates}
    assert set(by_name) == set(SESSION_ESTIMATORS)
    for name in ("pdis", "wpdis"):
        assert by_name[name].value == pytest.approx(mean)
    assert found.decisions == 300 * STEPS


def test_what_could_not_have_been_drawn_tells_nothing() -> None:
    """A log that never shows clickbait says nothing of who always does."""
    log = LTSSessions(30, seed=3).log(POLICY, EPOCH_US)
    never = log.with_columns(pmf=pl.lit([0.5, 0.25, 0.25, 0.0], dtype=pl.List(pl.Float64)))
    sessions = logged_sessions(never, SESSIONS)
    with pytest.raises(NotEnoughDataError, match=r"^other: expected 10 sessions .* got 0 of 30"):
        compare_over_sessions(sessions, {"other": FixedAction("d29")})
    with pytest.raises(InvalidInputError, match=r"^estimator: expected one of pdis"):
        compare_over_sessions(sessions, {"logged": None}, estimators=("ips",))


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ('{"user":{"id":1.5}}', r"^context\.user\.id: expected a text or a whole number, got 1\.5"),
        ('{"user":{"id":1},"signal":"high"}', r"^context\.signal: expected a number, got 'high'"),
    ],
)
def test_what_no_session_can_be_made_of_is_refused(
    log: pl.DataFrame, context: str, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        logged_sessions(log.with_columns(context=pl.lit(context)), SESSIONS)


def test_decisions_without_a_user_belong_to_no_session(log: pl.DataFrame) -> None:
    with pytest.raises(NotEnoughDataError, match=r"user\.id in their context, got none in 1,800"):
        logged_sessions(log.with_columns(context=pl.lit("{}")), SESSIONS)
    mixed = logged_sessions(pl.concat([log, log[:5].with_columns(context=pl.lit("{}"))]), SESSIONS)
    assert len(mixed.interactions) == 1800
    two = pl.concat([log, LTSSessions(2, seed=4).log(POLICY, EPOCH_US + 2 * HOUR + MINUTE)])
    assert len(logged_sessions(two, SESSIONS)) == 302
    assert np.unique(logged_sessions(two, SESSIONS).user).size == 300
