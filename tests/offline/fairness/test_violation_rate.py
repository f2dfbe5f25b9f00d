"""Violation rates: what is counted, and that intervals cover."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from croupier.offline.fairness.violation_rate import pairs_rate, violation_rate
from croupier.policy.errors import NotEnoughDataError
from croupier.policy.fairness.auditors import JudgedPairs, Metric, Panel


def world(rng: np.random.Generator, n: int, kind: str) -> tuple[Panel, np.ndarray]:
    places = 0.3 * rng.normal(size=(n, 2))
    if kind == "smooth":
        p = 1.0 / (1.0 + np.exp(-10.0 * places[:, 0]))
    elif kind == "step":
        p = np.where(places[:, 0] > 0.45, 0.9, 0.1)
    else:
        p = np.where(rng.random(n) < 0.02, 0.9, 0.1)
    return Panel([Metric(places)], 1.0), p[:, None]


@pytest.mark.parametrize("gap", ["any", "total_variation"])
def test_it_is_the_weighted_share_of_pairs(gap: str) -> None:
    rng = np.random.default_rng(1)
    n = 30
    places, treatments = 0.2 * rng.normal(size=(n, 2)), rng.dirichlet(np.ones(3), size=n)
    weights = rng.uniform(1.0, 3.0, size=n)
    top = bottom = count = 0.0
    for i, j in itertools.combinations(range(n), 2):
        apart = min(1.0, float(np.linalg.norm(places[i] - places[j])))
        differ = np.abs(treatments[i] - treatments[j])
        by = differ.max() if gap == "any" else differ.sum() / 2.0
        violates = float(by > apart + 0.05)
        top += weights[i] * weights[j] * violates
        bottom += weights[i] * weights[j]
        count += violates

    found = violation_rate(Panel([Metric(places)], 1.0), treatments, weights, alpha=0.05, gap=gap)

    assert found.value == pytest.approx(top / bottom)
    assert (found.decisions, found.pairs, found.violations) == (n, n * (n - 1) // 2, count)
    assert found.lower <= found.value <= found.upper


def test_only_judged_pairs_count() -> None:
    people = JudgedPairs(6, [0, 1, 4], [1, 2, 5], [0.0, 0.0, 1.0])
    treatments = np.array([0.9, 0.1, 0.1, 0.5, 0.9, 0.1])[:, None]
    panel = Panel([people], 1.0)

    found = violation_rate(panel, treatments, np.ones(6), alpha=0.1)
    of_pairs = pairs_rate(panel, treatments, np.array([0, 1, 4]), np.array([1, 2, 5]), alpha=0.1)

    assert (found.pairs, found.violations) == (3, 1)
    assert found.value == pytest.approx(1 / 3)
    assert (of_pairs.pairs, of_pairs.violations) == (3, 1)
    assert of_pairs.value == pytest.approx(1 / 3)


def test_no_violations_are_no_proof_that_there_are_none() -> None:
    places = np.random.default_rng(0).normal(size=(100, 2))
    found = violation_rate(
        Panel([Metric(places)], 1.0), np.full((100, 1), 0.5), np.ones(100), alpha=0.0
    )

    assert found.value == found.lower == 0.0
    assert found.effective_pairs == 50.0
    assert 0.0 < found.upper < 0.1


def test_nobody_who_judges_gives_no_rate() -> None:
    panel = Panel([JudgedPairs(3, [], [], [])], 1.0)
    with pytest.raises(NotEnoughDataError, match="judged by anybody"):
        violation_rate(panel, np.zeros((3, 1)), np.ones(3), alpha=0.1)
    with pytest.raises(NotEnoughDataError, match="at least two"):
        violation_rate(panel, np.zeros((1, 1)), np.ones(1), alpha=0.1)


def covered(kind: str, n: int, repeats: int, truth: float, seed: int) -> float:
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(repeats):
        panel, treatments = world(rng, n, kind)
        found = violation_rate(panel, treatments, np.ones(n), alpha=0.1)
        hits += found.lower <= truth <= found.upper
    return hits / repeats


def truth_of(kind: str, worlds: int) -> float:
    rng = np.random.default_rng(99)
    rates = []
    for _ in range(worlds):
        panel, treatments = world(rng, 1500, kind)
        rates.append(violation_rate(panel, treatments, np.ones(1500), alpha=0.1).value)
    return float(np.mean(rates))


@pytest.mark.parametrize("kind", ["smooth", "step", "rare"])
def test_intervals_cover(kind: str) -> None:
    # Of 200 intervals that cover with 93 %, fewer than 174 do once in a thousand times.
    assert covered(kind, 120, 200, truth_of(kind, 8), seed=7) >= 0.87


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["smooth", "step", "rare"])
@pytest.mark.parametrize("n", [50, 200, 800])
def test_intervals_cover_at_all_sizes(kind: str, n: int) -> None:
    # Three standard errors of 1,000 intervals below 93 %, which jackknives of small samples have.
    assert covered(kind, n, 1000, truth_of(kind, 40), seed=n) >= 0.905
