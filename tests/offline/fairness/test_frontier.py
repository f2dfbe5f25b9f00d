"""The frontier: what stored distances give is what asking the panel again would."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.offline.fairness.frontier import (
    PolicyOnPairs,
    StoredDistances,
    frontier,
    frontier_figure,
    mixed,
    stored_distances,
)
from croupier.offline.ope import Estimate
from croupier.policy.errors import InvalidInputError
from croupier.policy.fairness.auditors import JudgedPairs, Metric, Panel, violates

if TYPE_CHECKING:
    from pathlib import Path

N = 200


def stored(gamma: float = 0.5) -> tuple[Panel, StoredDistances, np.ndarray]:
    rng = np.random.default_rng(2)
    places = rng.normal(size=(N, 3))
    metrics = [Metric(places * scale) for scale in (0.1, 0.3, 0.5)]
    person = JudgedPairs(N, [0, 4], [1, 5], [0.0, 0.3])
    panel = Panel([*metrics, person], gamma)
    p = 1.0 / (1.0 + np.exp(-2.0 * places[:, 0]))
    ids = [f"d{each}" for each in range(N)]
    return panel, stored_distances(panel, ["x", "y", "z", "ada"], ids), np.stack([p, 1 - p], 1)


def value(estimate: float) -> Estimate:
    return Estimate(
        estimator="snips",
        value=estimate,
        lower=estimate - 0.1,
        upper=estimate + 0.1,
        confidence=0.95,
        interval="normal",
        n=100,
        ess=100.0,
        mean_weight=1.0,
        max_weight=1.0,
        nonzero_rewards=50,
    )


@settings(max_examples=20, deadline=None)
@given(alpha=st.floats(0.0, 0.5), gamma=st.floats(0.05, 1.0))
def test_any_meaning_of_fairness_follows_from_what_is_stored(alpha: float, gamma: float) -> None:
    panel, kept, treatments = stored(gamma)
    # Through JSON, as it is kept.
    kept = msgspec.json.decode(msgspec.json.encode(kept), type=StoredDistances)
    policy = PolicyOnPairs.of("policy", treatments, None, "any")

    (point,) = frontier(kept, [policy], [alpha], [gamma])

    first = np.arange(0, N, 2)
    gaps = np.abs(treatments[first] - treatments[first + 1]).max(axis=1)
    asked = violates(gaps, panel.distances(first, first + 1), alpha)
    assert point.rate == pytest.approx(asked.mean())
    assert point.rate_lower <= point.rate <= point.rate_upper


def test_mixing_with_the_uniform_policy_makes_fairer() -> None:
    _, kept, treatments = stored()
    family = mixed({"p": treatments}, np.full((N, 2), 0.5), [0.25, 0.5, 1.0])
    policies = [PolicyOnPairs.of(name, pmf, None, "any") for name, pmf in family.items()]

    rates = [each.rate for each in frontier(kept, policies, [0.05], [0.25])]

    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1] == 0.0
    assert list(family) == ["p", "p, 25 % uniform", "p, 50 % uniform", "uniform"]


def test_the_uniform_policy_is_there_once() -> None:
    uniform = np.full((4, 2), 0.5)
    family = mixed({"p": uniform + 0.1, "q": uniform - 0.1}, uniform, [1.0, 0.5])
    assert list(family) == ["p", "q", "p, 50 % uniform", "q, 50 % uniform", "uniform"]
    np.testing.assert_array_equal(family["uniform"], uniform)


def test_a_stricter_meaning_finds_more() -> None:
    _, kept, treatments = stored()
    policy = [PolicyOnPairs.of("p", treatments, None, "any")]

    by_alpha = [each.rate for each in frontier(kept, policy, [0.0, 0.1, 0.3], [0.5])]
    by_gamma = [each.rate for each in frontier(kept, policy, [0.1], [0.25, 0.5, 1.0])]

    assert by_alpha == sorted(by_alpha, reverse=True)
    assert by_gamma == sorted(by_gamma, reverse=True)


def test_who_is_dominated_is_not_efficient(tmp_path: Path) -> None:
    _, kept, treatments = stored()
    family = mixed({"p": treatments}, np.full((N, 2), 0.5), [0.5, 1.0])
    values = dict(zip(family, [0.8, 0.85, 0.5], strict=True))
    policies = [
        PolicyOnPairs.of(name, pmf, value(values[name]), "any") for name, pmf in family.items()
    ]

    points = frontier(kept, policies, [0.05], [0.25])

    assert [each.efficient for each in points] == [False, True, True]
    frontier_figure(points, tmp_path / "frontier.svg")
    assert "violation rate" in (tmp_path / "frontier.svg").read_text()


def test_gaps_of_other_pairs_are_refused() -> None:
    _, kept, treatments = stored()
    policy = PolicyOnPairs.of("p", treatments[:10], None, "any")
    with pytest.raises(InvalidInputError, match="expected 100 gaps of p, got 5"):
        frontier(kept, [policy], [0.1], [0.5])


def test_pairs_that_nobody_has_judged_give_no_frontier() -> None:
    kept = StoredDistances(decisions=["a", "b"], auditors=["x"], distances=[[None]])
    policy = PolicyOnPairs(name="p", gaps=[0.5])
    with pytest.raises(InvalidInputError, match="somebody has judged"):
        frontier(kept, [policy], [0.1], [0.5])
