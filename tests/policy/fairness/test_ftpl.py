"""Follow the perturbed leader: resampling, its bias, oracles, and learning."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import sklearn.linear_model

from croupier.policy.errors import InvalidInputError
from croupier.policy.fairness.cost_oracles import (
    ClassifierOracle,
    CostOracle,
    EnumeratingOracle,
    LeastSquaresOracle,
)
from croupier.policy.fairness.ftpl import (
    ContextSemiBanditFTPL,
    geometric_bias,
    geometric_counts,
    mixture_deviation,
)
from croupier.policy.fairness.lagrangian import Penalty
from tests.policy.fairness.planted import planted

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("chance", [0.02, 0.1, 0.5, 0.9])
def test_counts_estimate_one_over_the_chance_but_for_a_known_bias(chance: float) -> None:
    """E[J] = (1 - (1-q)^M) / q; 5 standard errors of 40,000 draws, a false alarm in 1.7 million."""
    most, draws = 30, 40_000
    rng = np.random.default_rng(7)
    counts = geometric_counts(rng.random((most, draws)) < chance)
    assert counts.min() >= 1.0
    assert counts.max() <= most
    expected = (1.0 - (1.0 - chance) ** most) / chance
    assert abs(counts.mean() - expected) <= 5.0 * counts.std() / math.sqrt(draws)
    # A loss of 1, seen where it was approved, in expectation.
    assert chance * expected == pytest.approx(1.0 - geometric_bias(chance, most))


def test_the_bias_is_at_most_one_over_e_m_q() -> None:
    for most in (1, 5, 100):
        for chance in np.linspace(0.001, 1.0, 200).tolist():
            assert geometric_bias(chance, most) <= 1.0 / (math.e * most * chance)


def test_a_mixture_of_draws_is_near_what_it_stands_for() -> None:
    """At 95 %; of 400 mixtures, more than 36 would be off by chance once in 500, if 20 were."""
    rng = np.random.default_rng(3)
    chances, leaders = rng.random(50), 60
    deviation = mixture_deviation(leaders, 50)
    votes = rng.random((400, leaders, 50)) < chances
    off = np.abs(votes.mean(axis=1) - chances).max(axis=1) > deviation
    assert off.sum() <= 36
    assert mixture_deviation(4 * leaders, 50) == pytest.approx(deviation / 2.0)


def test_the_enumerating_oracle_finds_the_best_of_its_class() -> None:
    world, rng = planted(), np.random.default_rng(0)
    hypotheses = world.thresholds(30)
    oracle = EnumeratingOracle(hypotheses, world.contexts[:10], size=5, noise=1e-9)
    costs = rng.normal(size=60)
    oracle.add(world.contexts[:40], costs[:40])
    oracle.add(world.contexts[40:], costs[40:])
    best = (hypotheses.decide(world.contexts) @ costs).argmin()
    np.testing.assert_array_equal(oracle.leaders(rng).places, np.full(5, best))
    loud = EnumeratingOracle(hypotheses, world.contexts[:10], size=200, noise=10.0)
    loud.add(world.contexts, costs)
    assert len(set(loud.leaders(rng).places.tolist())) > 5


def test_least_squares_leaders_are_those_under_one_price_on_every_approval() -> None:
    world, rng = planted(), np.random.default_rng(0)
    costs = rng.normal(size=60)
    size, noise = 9, 2.0
    oracle = LeastSquaresOracle(3, size=size, noise=noise, ridge=1e-9)
    oracle.add(world.contexts, costs)
    found = oracle.leaders(rng).weights
    scale = noise * math.sqrt(1.0 + costs @ costs) / 60
    for row, quantile in zip(found, (np.arange(size) + 0.5) / size, strict=True):
        laplace = math.log(2 * quantile) if quantile <= 0.5 else -math.log(2 - 2 * quantile)
        fitted = sklearn.linear_model.LinearRegression(fit_intercept=False).fit(
            world.contexts, costs + scale * laplace
        )
        np.testing.assert_allclose(row, -fitted.coef_, atol=1e-6)


def logistic(seed: int) -> sklearn.linear_model.LogisticRegression:
    return sklearn.linear_model.LogisticRegression(max_iter=500, random_state=seed)


def test_classifiers_are_fitted_anew_when_the_examples_have_doubled() -> None:
    world, rng = planted(), np.random.default_rng(0)
    oracle = ClassifierOracle(logistic, world.contexts[:10], size=3, noise=0.1)
    costs = np.where(world.contexts[:, 1] > 0.0, -1.0, 1.0)
    seen = set()
    for _ in range(16):
        oracle.add(world.contexts, costs)
        seen.add(id(oracle.leaders(rng)))
    assert oracle.fits == 3 * 5
    decided = oracle.leaders(rng).decide(world.contexts)
    assert decided.shape == (3, 60)
    assert (decided == (costs < 0.0)).mean() > 0.9
    with pytest.raises(InvalidInputError, match="growth: expected a number above 1"):
        ClassifierOracle(logistic, world.contexts, growth=1.0)
    with pytest.raises(InvalidInputError, match="noise: expected a positive number"):
        ClassifierOracle(logistic, world.contexts, noise=0.0)


def enumerating() -> CostOracle:
    world = planted()
    return EnumeratingOracle(world.thresholds(200), world.contexts[:40])


def least_squares() -> CostOracle:
    return LeastSquaresOracle(3)


def classifying() -> CostOracle:
    return ClassifierOracle(logistic, planted().contexts[:20], noise=0.3)


@pytest.mark.parametrize("make", [enumerating, least_squares, classifying])
def test_it_learns_from_approvals_alone(make: Callable[[], CostOracle]) -> None:
    world, rounds = planted(), 300
    learner = ContextSemiBanditFTPL(make(), penalty=Penalty(scale=0.0))
    error = [outcome.error for _, _, outcome in world.rounds(learner, rounds)]
    best = np.minimum(world.positive, 1.0 - world.positive).mean() * 20
    constant = min(world.positive.mean(), 1.0 - world.positive.mean()) * 20
    last = float(np.mean(error[-100:]))
    assert last < constant - 0.4 * (constant - best)


@pytest.mark.parametrize("make", [enumerating, least_squares])
def test_a_price_makes_violations_rarer(make: Callable[[], CostOracle]) -> None:
    world = planted()
    shares = []
    for scale in (0.0, 1.0):
        learner = ContextSemiBanditFTPL(make(), penalty=Penalty(scale=scale))
        violated = [out.violation is not None for _, _, out in world.rounds(learner, 800)]
        shares.append(float(np.mean(violated[-200:])))
    assert shares[1] < 0.5 * shares[0]
