"""The payments environment: what its parameters say is what comes out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from examples.payments import study
from examples.payments.environment import (
    COUNTRIES,
    DAY_US,
    HOUR_US,
    INTERVENTIONS,
    Payments,
    PaymentsConfig,
)


@pytest.mark.parametrize("approval", [0.85, 0.95])
def test_uniform_interventions_are_approved_as_often_as_they_should_be(approval: float) -> None:
    payments = Payments(PaymentsConfig(approval=approval, per_day=20_000), seed=3)
    some = payments.transactions(0, 1.0, seed=1)
    shares = some.feasible / some.feasible.sum(axis=1, keepdims=True)
    # The intercept is that of other 20,000 transactions; approvals differ by some .08 by context.
    found = (shares * some.approval).sum(axis=1)
    assert found.mean() == pytest.approx(approval, abs=5 * found.std() / math.sqrt(20_000) * 1.5)


def test_what_is_feasible_goes_by_the_transaction() -> None:
    some = Payments(PaymentsConfig(), seed=0).transactions(0, 3.0, seed=1)
    for number, each in enumerate(INTERVENTIONS):
        rows = some.feasible[:, number]
        columns = {name: column[rows] for name, column in some.columns.items()}
        if each.authentication == "exemption":
            assert (columns["log_amount"] < math.log(30.0)).all()
            assert (columns["country"] < 4).all()
        if each.authentication == "3ds":
            assert (columns["enrolled"] == 1.0).all()
        if each.moment == "later":
            assert (columns["retry"] > 0.0).all()
    count = some.feasible.sum(axis=1)
    assert count.min() >= 2
    assert len(set(count.tolist())) >= 5


def test_requests_offer_what_is_feasible_and_tell_nothing_of_the_answer() -> None:
    some = Payments(PaymentsConfig(per_day=200), seed=0).transactions(0, 1.0, seed=1)
    for row, request in enumerate(some.requests()):
        offered = [INTERVENTIONS[each].action for each in np.flatnonzero(some.feasible[row])]
        assert request.actions == offered
        assert request.context.keys() == {
            "issuer",
            "country",
            "currency",
            "card",
            "retry",
            "hour",
            "amount",
        }
        assert request.context["country"] in COUNTRIES


def test_answers_come_in_batches_after_their_delay() -> None:
    config = PaymentsConfig(delay_hours=12.0, batch_hours=6.0, per_day=20_000)
    some = Payments(config, seed=0).transactions(5 * DAY_US, 1.0, seed=1)
    assert (some.known_us % (6 * HOUR_US) == 0).all()
    waited = (some.known_us - some.ts_us) / HOUR_US
    # Half of the answers take 12 hours at most, and then up to 6 for their batch.
    assert (waited <= 12.0).mean() < 0.5 < (waited <= 18.0).mean()
    at_once = PaymentsConfig(delay_hours=0.0, batch_hours=1e-6, per_day=100)
    some = Payments(at_once, seed=0).transactions(0, 1.0, seed=1)
    assert np.abs(some.known_us - some.ts_us).max() < HOUR_US / 1000


def test_responses_lose_their_correlation_in_time() -> None:
    payments = Payments(PaymentsConfig(issuers=3000, drift_days=20.0), seed=0)
    days = payments._days
    first, later = days[0].ravel(), days[20].ravel()
    # 27,000 pairs: a standard error of .006.
    assert np.corrcoef(first, later)[0, 1] == pytest.approx(math.exp(-1.0), abs=0.025)
    assert later.std() == pytest.approx(payments.config.response, rel=0.03)
    still = Payments(PaymentsConfig(drift_days=math.inf), seed=0)._days
    assert (still[0] == still[100]).all()


def test_a_panel_is_the_same_requests_at_other_times() -> None:
    environment = study(1, per_day=100, panel=50)
    early, late = environment.panel(0), environment.panel(9)
    assert list(early.requests) == list(late.requests)
    assert any(
        (one != other).any() for one, other in zip(early.expected, late.expected, strict=True)
    )
    assert [len(each.actions) for each in early.requests] == [len(each) for each in early.expected]


def test_traffic_follows_on_and_is_the_same_for_a_seed() -> None:
    environment = study(1, per_day=100, days=2.0)
    one, again, other = environment.traffic(3), study(1, per_day=100).traffic(3), None
    other = study(2, per_day=100).traffic(3)
    assert len(one) == 200
    assert environment.end_us(2) <= one.ts_us.min() <= one.ts_us.max() < environment.end_us(3)
    assert list(one.requests) == list(again.requests)
    assert list(one.requests) != list(other.requests)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"approval": 1.0}, "approval must be in"),
        ({"issuers": 0}, "issuers must be at least 1"),
        ({"response": -1.0}, "response must be at least 0"),
        ({"drift_days": 0.0}, "drift_days must be positive"),
        ({"delay_hours": math.inf}, "delay_hours must be at least 0"),
        ({"batch_hours": 0.0}, "batch_hours must be positive"),
        ({"per_day": 0}, "per_day must be at least 1"),
    ],
)
def test_what_can_not_be_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PaymentsConfig(**changes)
