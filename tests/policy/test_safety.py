"""The safety budget: what is earned, what is spent, and that it is never overdrawn."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from croupier.policy.exploration import Conservative, SquareCB
from croupier.policy.safety import SafetyBudget

REWARDS = st.floats(0.0, 1.0)


@given(st.lists(st.tuples(REWARDS, REWARDS), max_size=50), REWARDS, st.floats(0.0, 2.0))
def test_is_never_overdrawn(rounds: list[tuple[float, float]], alpha: float, slack: float) -> None:
    """Exploring only when allowed keeps every prefix's sum above the baseline's share."""
    budget = SafetyBudget(alpha=alpha, slack=slack)
    earned = promised = 0.0
    explored = 0
    for value, baseline in rounds:
        if budget.allows(value, baseline):
            budget = budget.explored(value, baseline)
            earned += value
            explored += 1
            assert budget.available >= 0.0
        else:
            budget = budget.held(baseline)
            earned += baseline
        promised += (1.0 - alpha) * baseline
        assert budget.saved == pytest.approx(earned - promised, abs=1e-9)
        assert budget.explorations == explored


def test_by_hand() -> None:
    budget = SafetyBudget(alpha=0.1).held(1.0).held(1.0)
    assert budget.saved == pytest.approx(0.2)
    assert budget.allows(0.75, 1.0)
    assert not budget.allows(0.65, 1.0)
    assert budget.explored(0.75, 1.0).saved == pytest.approx(0.05)
    assert budget.per_decision(10) == pytest.approx(0.02)


def test_a_weight_counts_decisions_and_what_the_others_may_have_been() -> None:
    """A row that stands for 4: 4 times what it saved, with the allowance of 16 predictions."""
    budget = SafetyBudget(alpha=0.1, slack=0.5).explored(0.75, 1.0, 4.0)
    assert budget.saved == pytest.approx(-0.6)
    assert budget.available == pytest.approx(-0.6 - 0.5 * 4.0)
    held = SafetyBudget(alpha=0.1, slack=0.5).held(1.0, 4.0)
    assert held.saved == pytest.approx(0.4)
    assert held.available == pytest.approx(0.4 - 0.5 * 0.1 * 12.0**0.5)


@given(REWARDS, REWARDS)
def test_a_weight_of_one_changes_no_budget_in_its_last_bit(value: float, baseline: float) -> None:
    budget = SafetyBudget(alpha=0.1, slack=0.5)
    for _ in range(3):
        assert budget.explored(value, baseline) == budget.explored(value, baseline, 1.0)
        assert budget.held(baseline) == budget.held(baseline, 1.0)
        budget = budget.explored(value, baseline).held(baseline)
    assert budget.explorations == 3


def test_slack_grows_with_the_root_of_the_explorations() -> None:
    budget = SafetyBudget(alpha=0.0, slack=0.5)
    for _ in range(16):
        budget = budget.explored(1.0, 0.0)
    assert budget.available == pytest.approx(16.0 - 0.5 * 4.0)
    assert SafetyBudget(alpha=0.0, slack=0.5, explorations=4).per_decision(10) == -0.1


def test_nothing_is_bet_on_estimates_before_the_slack_is_saved() -> None:
    """However much better they make another action look."""
    guarded = Conservative(inner=SquareCB(), alpha=0.1)
    believed = np.array([0.5, 1.0, 0.0])
    assert guarded.pmf(believed, training_rows=100, baseline=0)[0] < 0.5
    pmf = guarded.pmf(believed, training_rows=100, baseline=0, budget=-1e-6)
    assert pmf[0] >= 0.9
    assert pmf.sum() == pytest.approx(1.0)
    assert pmf.min() > 0.0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"alpha": 1.5}, r"alpha must be in \[0, 1\], got 1.5"),
        ({"slack": -1.0}, r"slack must be in \[0, inf\), got -1"),
        ({"slack": float("inf")}, "slack"),
    ],
    ids=str,
)
def test_names_what_is_wrong(table: dict[str, float], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(table, SafetyBudget)


def test_a_conservative_policy_keeps_its_promise_where_an_unguarded_one_does_not() -> None:
    """C-SquareCB on a world that is known: predictions are the truth, the baseline is good.

    Over every prefix the guarded sum stays above 0.95 of the baseline's; plain gap weighting, with
    the same γ, loses more than that in every one of the five worlds.
    """
    inner = SquareCB(gamma_scale=1.0)
    guarded = Conservative(inner=inner, alpha=0.05)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        earned, plain, promised = 0.0, 0.0, 0.0
        broken = 0
        for rows in range(1, 400):
            rewards = np.append(0.8, rng.uniform(0.0, 0.5, 4))
            pmf = guarded.pmf(rewards, training_rows=rows, baseline=0)
            earned += float(pmf @ rewards)
            plain += float(inner.pmf(rewards, training_rows=rows) @ rewards)
            promised += 0.95 * 0.8
            assert earned >= promised - 1e-9
            broken += plain < promised
        assert broken > 300
        # And it explores as much as it may.
        assert earned == pytest.approx(promised, rel=1e-3)
