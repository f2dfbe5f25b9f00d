"""The index against all pairs: nothing false, nothing missed that is called settled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.offline.fairness.finder import all_partners, indexed_partners, worst_partners
from croupier.policy.fairness.auditors import JudgedPairs, Metric, Panel, gap_of


def world(
    n: int, *, actions: int = 1, auditors: int = 1, seed: int = 0, features: int = 3
) -> tuple[list[Metric], np.ndarray]:
    """Treatments that follow a feature, and some that don't."""
    rng = np.random.default_rng(seed)
    places = rng.normal(size=(n, features))
    score = 1.5 * places[:, :1] * np.arange(1, actions + 1)[None, :]
    score[rng.random(n) < 0.1, :1] += 2.0
    if actions == 1:
        treatments = 1.0 / (1.0 + np.exp(-score))
    else:
        treatments = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
    metrics = [Metric(places * rng.uniform(0.2, 0.6, size=features)) for _ in range(auditors)]
    return metrics, treatments


@pytest.mark.parametrize("gap", ["any", "total_variation"])
@pytest.mark.parametrize(("actions", "auditors", "gamma"), [(1, 1, 1.0), (3, 3, 0.5), (2, 3, 1.0)])
def test_an_index_finds_who_violates(gap: str, actions: int, auditors: int, gamma: float) -> None:
    metrics, treatments = world(1000, actions=actions, auditors=auditors)
    panel = Panel(metrics, gamma)

    exact = all_partners(panel, treatments, alpha=0.1, gap=gap)
    found = indexed_partners(panel, treatments, alpha=0.1, gap=gap)

    violating, seen = exact.partner >= 0, found.partner >= 0
    assert 20 < violating.sum() < 990
    assert not (seen & ~violating).any()
    assert (seen == violating)[found.settled].all()
    assert seen.sum() >= 0.98 * violating.sum()
    assert found.settled.mean() > 0.98
    assert (found.excess <= exact.excess + 1e-12).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 60), alpha=st.floats(0.0, 0.4))
def test_what_is_reported_violates_and_what_is_settled_is_right(
    seed: int, n: int, alpha: float
) -> None:
    metrics, treatments = world(n, actions=2, auditors=2, seed=seed)
    panel = Panel(metrics, 0.5)

    found = indexed_partners(panel, treatments, alpha=alpha)
    exact = all_partners(panel, treatments, alpha=alpha)

    rows = np.flatnonzero(found.partner >= 0)
    partners = found.partner[rows]
    over = gap_of("any")(treatments[rows], treatments[partners])
    over = over - panel.distances(rows, partners) - alpha
    np.testing.assert_allclose(over, found.excess[rows])
    assert (over > 0.0).all()
    assert ((found.partner >= 0) == (exact.partner >= 0))[found.settled].all()


def test_few_decisions_are_compared_pair_by_pair() -> None:
    metrics, treatments = world(200)
    panel = Panel(metrics, 1.0)

    assert worst_partners(panel, treatments, alpha=0.1).exact
    assert not worst_partners(panel, treatments, alpha=0.1, exact_up_to=100).exact


def test_all_pairs_give_the_largest_excess() -> None:
    metrics, treatments = world(60)
    found = all_partners(Panel(metrics, 1.0), treatments, alpha=0.05)
    first, second = np.broadcast_arrays(np.arange(60)[:, None], np.arange(60)[None, :])
    over = np.abs(treatments[first, 0] - treatments[second, 0])
    over = over - metrics[0].distances(first, second) - 0.05

    np.testing.assert_allclose(
        np.where(found.partner >= 0, found.excess, 0.0), np.maximum(over.max(axis=1), 0.0)
    )


def test_what_people_have_judged_is_looked_at_with_and_without_metrics() -> None:
    metrics, treatments = world(500)
    far = int(treatments[:, 0].argmax()), int(treatments[:, 0].argmin())
    person = JudgedPairs(500, [far[0]], [far[1]], [0.1])

    alone = indexed_partners(Panel([person], 1.0), treatments, alpha=0.1)
    # The stricter of the two, which is the person for the pair that she has judged.
    beside = indexed_partners(Panel([*metrics, person], 0.5), treatments, alpha=0.1)

    assert alone.violators == 2
    assert alone.partner[far[0]] == far[1]
    assert beside.excess[far[0]] >= alone.excess[far[0]] - 1e-12


def test_the_worst_pairs_share_no_decision() -> None:
    metrics, treatments = world(1000)
    worst = all_partners(Panel(metrics, 1.0), treatments, alpha=0.05).worst(8)

    ids = [row for pair in worst for row in pair[:2]]
    assert len(set(ids)) == 16
    assert [each[2] for each in worst] == sorted((each[2] for each in worst), reverse=True)
