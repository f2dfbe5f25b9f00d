"""Exponential weights: bounds that hold on every sequence, and learning in a planted world."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.policy.errors import InvalidInputError
from croupier.policy.fairness.exp2 import Exp2, ExponentialWeights, OpenDoor, fixed_rate
from croupier.policy.fairness.hypotheses import Members, thresholds_through
from croupier.policy.fairness.lagrangian import Penalty, lagrangian, violations_at_most
from tests.policy.fairness.planted import ALPHA, planted


@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.floats(0.01, 1000.0))
@settings(max_examples=60)
def test_the_adaptive_rate_keeps_its_bound_on_every_sequence(
    seed: int, size: int, largest: float
) -> None:
    rng = np.random.default_rng(seed)
    weights, suffered, variances, widest = ExponentialWeights(size), 0.0, 0.0, 0.0
    better = rng.random(size) - 0.5
    for _ in range(200):
        pi = weights.distribution()
        # As importance weights make them: seldom large, of either sign.
        losses = largest * (better + rng.normal(size=size)) * (rng.random() < 0.3)
        suffered += float(pi @ losses)
        variances += float(pi @ losses**2 - (pi @ losses) ** 2)
        widest = max(widest, float(np.ptp(losses)))
        weights.learn(losses, pi)
    regret = suffered - float(weights.cumulative.min())
    assert regret <= 2.0 * weights.gap + 1e-6 * largest
    log_size = math.log(size)
    bound = 2.0 * math.sqrt(variances * log_size) + widest * (4.0 / 3.0 * log_size + 2.0)
    assert 2.0 * weights.gap <= bound + 1e-6 * largest


@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.floats(0.001, 1.0))
@settings(max_examples=60)
def test_a_fixed_rate_keeps_its_bound_on_every_sequence(seed: int, size: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    weights, suffered, moments = ExponentialWeights(size, rate), 0.0, 0.0
    for _ in range(200):
        pi = weights.distribution()
        losses = rng.random(size) * rng.integers(0, 5)
        suffered += float(pi @ losses)
        moments += float(pi @ losses**2)
        weights.learn(losses, pi)
    regret = suffered - float(weights.cumulative.min())
    assert regret <= math.log(size) / rate + rate / 2.0 * moments + 1e-9


def test_unconstrained_regret_is_within_the_bound_for_a_known_horizon() -> None:
    """Expected misclassification regret is at most 2 √(2 n D T ln H), with n = k + 2, D = 2n.

    Realised regret is off its expectation by a martingale of increments within [-k, k], so above
    the bound by 4 k √(T / 2) with a chance of less than 1e-6 a run by Hoeffding's inequality;
    it is in fact far below.
    """
    world, rounds, instances = planted(), 3000, 4
    hypotheses = world.thresholds(50)
    rate = fixed_rate(50, instances, rounds, 0.0)
    learner = Exp2(hypotheses, penalty=Penalty(scale=0.0), door=OpenDoor(most=0.0), rate=rate)
    error, errors = 0.0, np.zeros(50)
    decided = hypotheses.decide(world.contexts)
    for who, labels, outcome in world.rounds(learner, rounds, instances=instances):
        error += outcome.error
        errors += (decided[:, who] != labels).sum(axis=1)
    regret = error - errors.min()
    n = instances + 2
    assert regret <= 2.0 * math.sqrt(2.0 * n * 2 * n * rounds * math.log(50))
    # It has learned: uniform weights would have had more than this.
    assert regret < 0.5 * (errors.mean() - errors.min())


@pytest.mark.parametrize("full_information", [False, True])
def test_violations_are_paid_for_in_the_lagrangian(full_information: bool) -> None:
    """C ε V ≤ R_L - R holds round by round against any comparator that is fair at α - ε."""
    world, slack = planted(), 0.05
    hypotheses, price = world.thresholds(200), 60.0
    learner = Exp2(hypotheses, penalty=Penalty(scale=3.0, exponent=0.0))
    # Equal weights on parallel thresholds in merit rise as slowly as one likes.
    cuts = np.linspace(-2.5, 2.5, 201)
    fair = (world.contexts[:, 1][:, None] >= cuts).mean(axis=1)
    allowed = world.distance + ALPHA - slack
    assert (fair[:, None] - fair <= allowed).all(), "the comparator is fair"
    regret = lagrangian_regret = 0.0
    violations = 0
    for who, labels, outcome in world.rounds(learner, 400, full_information=full_information):
        chances = outcome.play.chances
        pair = outcome.violation
        violations += pair is not None
        regret += lagrangian(chances, labels, None, price)
        regret -= lagrangian(fair[who], labels, None, price)
        lagrangian_regret += lagrangian(chances, labels, pair, price)
        lagrangian_regret -= lagrangian(fair[who], labels, pair, price)
        assert violations <= violations_at_most(lagrangian_regret, regret, price, slack) + 1e-6
    assert violations > 0


def test_violations_become_rare_and_errors_less_than_those_of_a_constant() -> None:
    world = planted()
    learner = Exp2(world.thresholds(200))
    found = [
        (outcome.violation is not None, outcome.error, labels.sum())
        for _, labels, outcome in world.rounds(learner, 2000)
    ]
    violated, error, positive = np.array(found, dtype=np.float64).T
    assert violated[-500:].mean() < 0.5 * violated[:100].mean()
    constant = min(positive[-500:].sum(), 20 * 500 - positive[-500:].sum())
    assert error[-500:].sum() < 0.9 * constant
    # Without a price, the group makes a difference that the metric doesn't know of.
    heedless = Exp2(world.thresholds(200), penalty=Penalty(scale=0.0))
    last = [outcome.violation is not None for _, _, outcome in world.rounds(heedless, 500)][-100:]
    assert np.mean(last) > 0.9


def test_the_audited_chances_are_those_of_the_draws() -> None:
    """10,000 plays of one round: no chance is off by 5 standard errors (false alarm 1.2e-5)."""
    world = planted()
    learner = Exp2(world.thresholds(40))
    for _ in world.rounds(learner, 100):
        pass
    contexts, rng = world.contexts[:20], np.random.default_rng(1)
    plays = [learner.act(contexts, rng) for _ in range(10_000)]
    chances = plays[0].chances
    observed = np.mean([play.approved for play in plays], axis=0)
    error = np.sqrt(chances * (1.0 - chances) / len(plays))
    assert (np.abs(observed - chances) <= 5.0 * error + 1e-12).all()
    np.testing.assert_allclose(plays[0].inverse * chances, 1.0)


def test_a_class_has_those_who_approve_everybody_and_nobody() -> None:
    world = planted()
    decided = world.thresholds(30).decide(world.contexts)
    assert decided[0].all()
    assert not decided[1].any()
    assert 0.2 < decided[2:].mean() < 0.8
    members = Members(world.thresholds(30), np.array([1, 0, 0]))
    np.testing.assert_array_equal(members.decide(world.contexts), decided[[1, 0, 0]])
    rng = np.random.default_rng(0)
    with pytest.raises(InvalidInputError, match="size: expected at least 3 hypotheses, got 2"):
        thresholds_through(world.contexts, 2, rng, columns=[1])
    with pytest.raises(InvalidInputError, match="contexts: expected a first column of ones"):
        thresholds_through(world.contexts[:, 1:], 9, rng, columns=[1])


def test_a_door_is_open_less_and_less() -> None:
    assert [OpenDoor().at(each) for each in (1, 4, 100)] == [0.5, 0.5, 0.1]
    with pytest.raises(ValueError, match=r"most must be in \[0, 1\], got 2.0"):
        OpenDoor(most=2.0)
