"""The difference of two policies over the same sessions, beside its closed form."""

from __future__ import annotations

import numpy as np
import pytest
import scipy

from croupier.offline.ope import SESSION_ESTIMATORS, SessionBatch, SessionEstimator
from croupier.offline.ope.session_differences import PairedSessions, SessionDifference
from croupier.policy.errors import InvalidInputError

N, T = 300, 4


def batches(seed: int, n: int = N) -> PairedSessions:
    """Sessions of three actions, and two policies that mostly agree."""
    rng = np.random.default_rng(seed)
    propensity = rng.uniform(0.2, 0.6, (n, T))
    first = np.clip(propensity * rng.uniform(0.8, 1.2, (n, T)), 0.0, 1.0)
    both = (first, np.clip(first * rng.uniform(0.95, 1.05, (n, T)), 0.0, 1.0))
    reward = rng.normal(1.0, 1.0, (n, T))
    steps = rng.integers(1, T + 1, n)
    value = rng.normal(size=(n, T))
    more = {"q_logged": rng.normal(size=(n, T)), "state_weight": rng.uniform(0.5, 1.5, (n, T))}
    return PairedSessions(
        *(
            SessionBatch(
                reward=reward,
                propensity=propensity,
                target_probability=each,
                steps=steps,
                v_target=value,
                **more,
            )
            for each in both
        )
    )


@pytest.mark.parametrize("name", list(SESSION_ESTIMATORS))
def test_it_is_the_difference_of_both(name: str) -> None:
    paired = batches(1)
    found = SessionDifference(SessionEstimator.named(name, horizon=T)).add(paired).result()
    a, b = (
        SessionEstimator.named(name, horizon=T).add(each).result() for each in (paired.a, paired.b)
    )
    assert found.value == pytest.approx(b.value - a.value, abs=1e-12)
    assert found.n == N
    assert found.ess == pytest.approx(min(a.ess, b.ess))
    assert found.max_weight == pytest.approx(max(a.max_weight, b.max_weight))
    # What the sessions share cancels.
    assert found.upper - found.lower < 0.7 * (b.upper - b.lower)


def test_its_interval_is_that_of_the_paired_mean() -> None:
    paired = batches(2)

    def payoff(batch: SessionBatch) -> np.ndarray:
        weight = (batch.target_probability / batch.propensity).cumprod(axis=1)
        live = np.arange(T) < np.asarray(batch.steps)[:, None]
        earned: np.ndarray = np.where(live, weight * batch.reward, 0.0).sum(axis=1)
        return earned

    each = payoff(paired.b) - payoff(paired.a)
    found = SessionDifference(SessionEstimator.named("pdis", horizon=T)).add(paired).result(0.9)
    half = scipy.stats.norm.ppf(0.95) * each.std() / np.sqrt(N)
    assert found.value == pytest.approx(each.mean())
    assert (found.upper - found.lower) / 2.0 == pytest.approx(half, rel=0.01)


def test_parts_of_a_log_come_to_the_whole() -> None:
    whole = SessionDifference(SessionEstimator.named("wdr", horizon=T))
    parts = SessionDifference(SessionEstimator.named("wdr", horizon=T))
    whole.add(batches(3)).add(batches(4))
    parts.add(batches(3)).merge(
        SessionDifference(SessionEstimator.named("wdr", horizon=T)).add(batches(4))
    )
    assert parts.result().value == pytest.approx(whole.result().value)
    assert parts.result().upper == pytest.approx(whole.result().upper)


def test_other_sessions_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"^b\.reward: expected the same sessions"):
        PairedSessions(batches(1).a, batches(2).b)
