"""Mixtures of a champion, a canary and uniform play: their logs are sound, and tell of others."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from croupier.offline.audit import draws_test
from croupier.offline.evaluate import evaluate
from croupier.policy.exploration import EpsilonGreedy, Greedy
from croupier.policy.loop import LoopConfig
from croupier.policy.traffic import Plan
from tests.offline.worlds import World, random_world

ROWS = 6000
CANARY, UNIFORM = 0.2, 0.1
# Of each of the statistical tests here, if the mixture's propensities are right; fixed seeds.
FALSE_ALARM = 1e-3


@pytest.fixture(scope="module")
def world() -> World:
    return World(random_world(3, 4, seed=5).rewards, excluded=(None, 1, None))


@pytest.fixture(scope="module")
def plan(world: World) -> Plan:
    """A greedy canary beside a champion with wrong beliefs that explores a little."""
    champion = world.generation(1, EpsilonGreedy(epsilon=0.1), world.rewards[:, ::-1])
    return Plan(champion, canary=world.generation(2, Greedy()), canary_share=CANARY)


@pytest.fixture(scope="module")
def log(world: World, plan: Plan) -> pl.DataFrame:
    return world.log(plan, ROWS, seed=1, uniform=UNIFORM)


def test_draws_happen_with_the_mixture_s_propensities(log: pl.DataFrame) -> None:
    assert not draws_test(log).rejects(FALSE_ALARM)


def test_the_test_would_notice_a_propensity_of_the_champion_alone(
    world: World, plan: Plan, log: pl.DataFrame
) -> None:
    """As it would be if the canary's share were left out of the pmf."""
    alone = {}
    for context in range(len(world.rewards)):
        request = world.request(context)
        assert plan.canary is not None
        pmf = world.pmf(plan.champion, context)
        allowed = np.array([action.id not in request.excluded for action in request.actions])
        mixed = (1 - UNIFORM) * pmf + UNIFORM * allowed / allowed.sum()
        alone[f"x{context}"] = mixed.tolist()
    contexts = log["context"].str.json_path_match("$.x")
    pmfs = pl.Series("pmf", [alone[each] for each in contexts], dtype=log.schema["pmf"])
    propensities = [pmf[chosen] for pmf, chosen in zip(pmfs, log["chosen"], strict=True)]
    wrong = log.with_columns(pmfs, pl.Series("propensity", propensities))
    assert draws_test(wrong).rejects(FALSE_ALARM)


def test_off_policy_estimates_from_a_mixture_recover_the_truth(
    world: World, plan: Plan, log: pl.DataFrame
) -> None:
    target = world.generation(3, EpsilonGreedy(epsilon=0.2))
    assert plan.canary is not None
    evaluation = evaluate(log, plan.canary, target, LoopConfig(), confidence=1.0 - FALSE_ALARM)
    assert evaluation.left_out == 0
    for policy, generation in zip(evaluation.policies, (plan.canary, target), strict=True):
        truth = world.value(generation)
        for estimate in policy.estimates.values():
            assert estimate.lower <= truth <= estimate.upper
            assert abs(estimate.value - truth) < 0.05
    # The log shows which of the two is better, though neither made it.
    difference = world.value(target) - world.value(plan.canary)
    assert evaluation.differences["dr"].lower <= difference <= evaluation.differences["dr"].upper
    assert evaluation.differences["dr"].upper < 0.0


def test_the_log_says_who_was_in_the_mixture(log: pl.DataFrame) -> None:
    (mix,) = {tuple((part["source"], part["weight"]) for part in row) for row in log["mix"]}
    assert [source for source, _ in mix] == ["generation:1", "generation:2", "uniform"]
    shares = (1 - CANARY) * (1 - UNIFORM), CANARY * (1 - UNIFORM), UNIFORM
    np.testing.assert_allclose([weight for _, weight in mix], shares)
    assert log["generation"].unique().to_list() == [1]
