"""Any number of policies on one log, against closed forms and known truths."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from croupier.offline.compare import Comparison, compare
from croupier.offline.counterfactual import baseline_policy, random_policy
from croupier.offline.evaluate import evaluate
from croupier.offline.multiplicity import bonferroni
from croupier.offline.ope.diagnostics import SupportLimits
from croupier.offline.policies import FixedAction, best_fixed
from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.policy.exploration import EpsilonGreedy, Greedy, Softmax
from croupier.policy.generation import Generation, cold_start
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import SklearnConfig
from tests.offline.shapes import SHAPES, Shape, log_of
from tests.offline.worlds import World, random_world

CONFIG = LoopConfig(oracle=SklearnConfig())


@pytest.fixture(scope="module")
def world() -> World:
    return World(random_world(3, 4, seed=3).rewards, excluded=(None, 2, None))


@pytest.fixture(scope="module")
def uniform(world: World) -> pl.DataFrame:
    """600 uniform draws."""
    return world.log(cold_start("shop"), 600, seed=5)


@pytest.fixture(scope="module")
def mixed(world: World) -> pl.DataFrame:
    """Three generations, 300 rows each."""
    policies = [
        cold_start("shop"),
        world.generation(1, EpsilonGreedy(epsilon=0.5)),
        world.generation(2, Softmax(temperature=0.3)),
    ]
    logs = [world.log(each, 300, seed, first=300 * seed) for seed, each in enumerate(policies)]
    return pl.concat(logs)


@pytest.fixture(scope="module")
def pair(world: World) -> dict[str, Generation]:
    return {
        "champion": world.generation(5, Softmax(temperature=0.3), world.rewards[::-1]),
        "challenger": world.generation(6, EpsilonGreedy(epsilon=0.2)),
    }


@pytest.fixture(scope="module")
def compared(mixed: pl.DataFrame, pair: dict[str, Generation]) -> Comparison:
    policies = {**pair, "logged": None, "uniform": random_policy}
    return compare(mixed, policies, CONFIG, by=["generation", "x"])


def test_two_generations_are_compared_as_the_gate_does(
    mixed: pl.DataFrame, pair: dict[str, Generation]
) -> None:
    """To the last digit but for the order of the rows."""
    first, second = pair.values()
    gate = evaluate(mixed, first, second, CONFIG)
    found = compare(mixed, pair, CONFIG)
    assert found.refusals == []
    assert (found.total.rows, found.total.left_out) == (gate.rows, gate.left_out)
    assert found.model == "the oracle of challenger"
    for policy, judged in zip(found.total.policies, gate.policies, strict=True):
        for kind, estimate in judged.estimates.items():
            told = policy.values[kind].estimate
            assert told is not None
            for name in ("value", "lower", "upper", "ess", "mean_weight", "max_weight"):
                assert getattr(told, name) == pytest.approx(getattr(estimate, name), abs=1e-9)
        assert policy.support is not None
        assert policy.support.deficient == judged.support.deficient == 0.0
        assert policy.objections == judged.objections(SupportLimits())
    for kind, estimate in gate.differences.items():
        told = found.total.policies[1].differences[kind].estimate
        assert told is not None
        assert (told.lower, told.upper) == pytest.approx((estimate.lower, estimate.upper), abs=1e-9)


def test_closed_forms(uniform: pl.DataFrame) -> None:
    """On uniform draws of K actions a fixed one is worth ``mean(K 1[a] r)``, or the mean there."""
    policies = {"logged": None, "uniform": random_policy, "fixed": FixedAction("a1")}
    found = compare(uniform, policies, CONFIG, estimators=["ips", "snips"])
    logged, drawn, fixed = found.total.policies
    rewards = uniform["reward"].to_numpy()
    for policy in (logged, drawn):
        for finding in policy.values.values():
            assert finding.value == pytest.approx(rewards.mean(), abs=1e-12)
    sizes = 1.0 / uniform["propensity"].to_numpy()
    assert set(sizes.round().tolist()) == {3.0, 4.0}
    own = (uniform["action_id"] == "a1").to_numpy()
    assert fixed.values["ips"].value == pytest.approx((sizes * own * rewards).mean(), abs=1e-12)
    weighted = (sizes * own * rewards).sum() / (sizes * own).sum()
    assert fixed.values["snips"].value == pytest.approx(weighted, abs=1e-12)
    difference = fixed.differences["snips"].value
    assert difference == pytest.approx(weighted - rewards.mean(), abs=1e-12)
    assert logged.differences == {}
    assert found.quality.uniform == pytest.approx(rewards.mean(), abs=1e-12)


def test_a_log_of_uniform_draws_has_a_tq_of_zero(world: World, uniform: pl.DataFrame) -> None:
    """It earned what they are worth."""
    policies = {"logged": None, "good": world.generation(1, Greedy())}
    quality = compare(uniform, policies, CONFIG, estimators=["snips"]).quality
    assert quality.best_policy == "good"
    assert quality.tq == pytest.approx(0.0, abs=1e-12)


def test_a_log_of_the_best_policy_has_a_tq_of_one(world: World) -> None:
    best = world.generation(1, EpsilonGreedy(epsilon=0.2))
    log = world.log(best, 800, seed=3)
    found = compare(log, {"logged": None, "uniform": random_policy, "best": best}, CONFIG)
    assert found.quality.tq == pytest.approx(1.0, abs=1e-9)
    assert found.quality.coverage.saco <= 1.0


def test_an_action_that_is_barred_is_replaced_by_any_other(world: World) -> None:
    """The fixed policy's value is known: its action's rewards, and a mean where it may not."""
    log = world.log(cold_start("shop"), 4000, seed=9)
    fixed = FixedAction("a2")
    rewards = world.rewards
    truth = (rewards[0, 2] + np.delete(rewards[1], 2).mean() + rewards[2, 2]) / 3
    finding = compare(log, {"fixed": fixed}, CONFIG, estimators=["ips"]).total.policies[0]
    estimate = finding.values["ips"].estimate
    assert estimate is not None
    # At 99.99 %: four standard errors of payoffs that reach to 4.
    assert abs(estimate.value - truth) < 4 * 2.0 / math.sqrt(4000)
    assert finding.support is not None
    assert finding.support.deficient == 0.0


def test_groups_add_up_to_the_whole(compared: Comparison) -> None:
    total = compared.total
    assert set(compared.groups) == {"generation", "x", "day"}
    for groups in compared.groups.values():
        assert sum(each.rows for each in groups) == total.rows == 900
        assert sum(each.nonzero_rewards for each in groups) == total.nonzero_rewards
        for place, policy in enumerate(total.policies):
            for kind in groups[0].policies[0].values:
                if kind == "snips":
                    continue
                parts = [(each.rows, each.policies[place].values[kind].value) for each in groups]
                mean = sum(rows * (value or 0.0) for rows, value in parts) / 900
                assert mean == pytest.approx(policy.values[kind].value, abs=1e-12)
    assert [each.key for each in compared.groups["generation"]] == ["0", "1", "2"]


def test_intervals_of_a_table_hold_at_once(compared: Comparison) -> None:
    """Their confidence is Bonferroni's: of 12 values in groups, 9 differences, and 3 in all."""
    for policy in compared.total.policies:
        for finding in policy.values.values():
            assert finding.estimate is not None
            assert finding.estimate.confidence == 0.95
        for finding in policy.differences.values():
            assert finding.estimate is not None
            assert finding.estimate.confidence == bonferroni(0.95, 3)
    for group in compared.groups["x"]:
        for policy in group.policies:
            for finding in policy.values.values():
                assert finding.estimate is not None
                assert finding.estimate.confidence == bonferroni(0.95, 12)
            for finding in policy.differences.values():
                assert finding.estimate is not None
                assert finding.estimate.confidence == bonferroni(0.95, 9)


def test_values_by_group_hold_at_once(world: World) -> None:
    """All three contexts are covered in 90 % of 40 logs. False alarm: 1e-3."""
    policy = world.generation(1, EpsilonGreedy(epsilon=0.2))
    truth = [world.pmf(policy, x) @ world.rewards[x] for x in range(3)]
    covered = 0
    for seed in range(40):
        log = world.log(cold_start("shop"), 250, seed)
        found = compare(
            log, {"policy": policy}, CONFIG, estimators=["ips"], by=["x"], confidence=0.9
        )
        ends = {each.key: each.policies[0].values["ips"].estimate for each in found.groups["x"]}
        covered += all(
            (estimate := ends[f"x{x}"]) is not None and estimate.lower <= value <= estimate.upper
            for x, value in enumerate(truth)
        )
    assert covered >= stats.binom.ppf(1e-3, 40, 0.9)


def test_holm_finds_what_differs(mixed: pl.DataFrame, pair: dict[str, Generation]) -> None:
    policies = {"logged": None, "again": None, **pair}
    found = compare(mixed, policies, CONFIG, estimators=["ips"], correction="holm")
    _, again, *others = found.total.policies
    assert again.differences["ips"].p_value == 1.0
    assert all((each.differences["ips"].p_value or 0) < 0.05 for each in others)
    plain = compare(mixed, policies, CONFIG, estimators=["ips"], correction="none")
    estimate = plain.total.policies[2].differences["ips"].estimate
    assert estimate is not None
    assert estimate.confidence == 0.95
    assert plain.total.policies[2].differences["ips"].p_value is None


def test_the_order_of_the_rows_does_not_matter(
    mixed: pl.DataFrame, pair: dict[str, Generation]
) -> None:
    """Not to a sequence either, which takes them by their time; nor to a bootstrap."""
    for interval in ("confidence-sequence", "bootstrap"):
        one, other = (
            compare(rows, pair, CONFIG, estimators=["ips"], interval=interval)
            for rows in (mixed, mixed.sample(fraction=1.0, shuffle=True, seed=1))
        )
        assert one == other


def test_without_a_generation_a_reward_model_is_fitted_crosswise(world: World) -> None:
    log = world.log(world.generation(1, EpsilonGreedy(epsilon=0.5)), 900, seed=4)
    found = compare(
        log, {"logged": None, "uniform": random_policy}, CONFIG, estimators=["dr", "dm"]
    )
    assert found.model == "sklearn oracles, fitted crosswise"
    truth = world.value(cold_start("shop"))
    uniform = found.total.policies[1]
    estimate = uniform.values["dr"].estimate
    assert estimate is not None
    assert estimate.lower <= truth <= estimate.upper
    # It has learned something: a model that knows nothing predicts 0 for all.
    assert abs((uniform.values["dm"].value or 0.0) - truth) < 0.15


def test_without_any_reward_model_others_go_on(uniform: pl.DataFrame) -> None:
    """An estimator that can't be had costs no other one."""
    config = LoopConfig(
        oracle=SklearnConfig(estimator="sklearn.linear_model.LogisticRegression", params={})
    )
    nothing = uniform.with_columns(reward=pl.lit(0.0))
    found = compare(nothing, {"logged": None, "uniform": random_policy}, config)
    policy = found.total.policies[1]
    assert found.model is None
    assert policy.values["ips"].value == 0.0
    assert policy.values["dr"].value is None
    assert "no reward model could be fitted" in (policy.values["dr"].why_none or "")
    assert policy.differences["dr"].value is None


@pytest.mark.parametrize("shape", SHAPES)
def test_whoever_made_a_log_of_any_shape_has_weights_of_one(shape: Shape, world: World) -> None:
    policy = world.generation(1, Softmax(temperature=0.3))
    log = log_of(world, policy, shape, 100, seed=5)
    found = compare(log, {"logged": None, "policy": policy}, CONFIG, estimators=["snips"])
    assert found.refusals == []
    assert found.total.policies[1].differences["snips"].value == pytest.approx(0.0, abs=1e-9)


# What is not to be believed.


def test_wrong_propensities_are_found_in_their_generation(
    mixed: pl.DataFrame, pair: dict[str, Generation]
) -> None:
    """A generation says that it drew uniformly, and didn't."""
    uniform = pl.lit([0.25, 0.25, 0.25, 0.25])
    wrong = mixed.filter(pl.col("excluded").list.len() == 0).with_columns(
        pmf=pl.when(pl.col("generation") == 2).then(uniform).otherwise("pmf"),
        propensity=pl.when(pl.col("generation") == 2).then(0.25).otherwise("propensity"),
        draw_key=pl.lit(""),
    )
    found = compare(wrong, pair, CONFIG)
    (reason,) = found.health.objections
    assert reason.startswith(
        "the draws of generation 2 did not happen with the logged propensities"
    )
    assert reason in found.refusals
    parts = {each.part: each for each in found.health.parts}
    assert (parts["generation 1"].corrected_p_value or 0.0) > 0.01
    assert parts["all"].rows == sum(parts[f"generation {number}"].rows for number in range(3))


def test_a_draw_that_comes_out_differently_is_found(mixed: pl.DataFrame) -> None:
    """By its generation, and by the group that was asked for."""
    other = mixed.filter(pl.col("generation") == 0)["draw_key"]
    row = pl.int_range(pl.len())
    swapped = mixed.with_columns(
        draw_key=pl.when((pl.col("generation") == 1) & (row < 320))
        .then(pl.lit(other[0]))
        .otherwise("draw_key")
    )
    found = compare(swapped, {"logged": None}, CONFIG, by=["x"])
    assert any("draws of generation 1 come out differently" in each for each in found.refusals)
    assert any("draws of x x" in each for each in found.refusals)
    whole, *others = found.health.parts
    assert whole.replayed == 900
    assert whole.replay_mismatches == sum(
        each.replay_mismatches for each in others if each.part.startswith("generation")
    )


def test_rows_that_contradict_themselves_are_found(mixed: pl.DataFrame) -> None:
    wrong = mixed.with_columns(
        propensity=pl.when(pl.int_range(pl.len()) == 17).then(0.9).otherwise("propensity")
    )
    found = compare(wrong, {"logged": None}, CONFIG)
    assert found.refusals[0].startswith("1 rows of generation 0 contradict themselves")


def test_a_log_without_support_is_refused_with_its_reasons(world: World) -> None:
    """A greedy log says nothing about what it never tried."""
    log = world.log(world.generation(1, Greedy()), 300, seed=7)
    found = compare(log, {"logged": None, "uniform": random_policy}, CONFIG)
    assert found.health.objections == []
    assert found.total.rows == 0
    assert all("fewer than 20: 300 others don't" in each for each in found.refusals)
    assert found.total.policies[1].values["ips"].value is None
    assert found.quality.tq is None
    assert found.quality.coverage.saco == pytest.approx(3 / 11, abs=1e-4)


def test_some_missing_actions_are_told_as_a_share(world: World) -> None:
    greedy = world.log(world.generation(1, EpsilonGreedy(epsilon=0.4)), 400, seed=7)
    first = world.pmf(world.generation(1, EpsilonGreedy(epsilon=0.4)), 0)
    worst = int(np.argmin(first))
    x0 = pl.col("context") == '{"x":"x0"}'
    cut = [0.0 if place == worst else p / (1 - first[worst]) for place, p in enumerate(first)]
    log = greedy.filter(~x0 | (pl.col("chosen") != worst)).with_columns(
        pmf=pl.when(x0).then(pl.lit(cut)).otherwise("pmf"),
        draw_key=pl.lit(""),
    )
    log = log.with_columns(propensity=pl.col("pmf").list.get(pl.col("chosen")))
    found = compare(log, {"uniform": random_policy}, CONFIG)
    kept = log.filter(x0).height
    share = 100 * 0.25 * kept / len(log)
    (reason,) = found.refusals
    assert reason.startswith(
        f"{share:.2g} % of the choices of uniform could never have been logged"
    )
    assert found.total.left_out == kept


def test_changes_between_generations_are_flagged(world: World) -> None:
    poorer = dataclasses.replace(world, rewards=np.maximum(0.0, world.rewards - 0.3))
    policy = EpsilonGreedy(epsilon=0.5)
    logs = [
        where.log(world.generation(number, policy), 500, number, first=500 * number)
        for number, where in enumerate((world, poorer), start=1)
    ]
    found = compare(pl.concat(logs), {"logged": None}, CONFIG)
    assert found.health.drifted is not None
    assert (found.health.drifted.rewards, found.health.drifted.features) == (1, 0)
    assert compare(logs[0], {"logged": None}, CONFIG).health.drifted is None


def test_what_can_not_be_compared_is_refused(uniform: pl.DataFrame) -> None:
    with pytest.raises(InvalidInputError, match="policies: expected at least one"):
        compare(uniform, {}, CONFIG)
    with pytest.raises(InvalidInputError, match="estimators: expected at least one"):
        compare(uniform, {"logged": None}, CONFIG, estimators=[])
    with pytest.raises(NotEnoughDataError, match="needs interactions"):
        compare(uniform[:0], {"logged": None}, CONFIG)


def test_a_baseline_that_is_not_told_leaves_rows_out(uniform: pl.DataFrame) -> None:
    told = uniform.with_columns(
        baseline=pl.when(pl.int_range(pl.len()) < 400).then("baseline").otherwise(None)
    )
    found = compare(told, {"baseline": baseline_policy}, CONFIG, estimators=["ips"])
    assert (found.total.rows, found.total.left_out) == (400, 200)


# The best fixed action.


def test_the_best_fixed_action_is_that_of_the_highest_value() -> None:
    world = World(np.tile([0.2, 0.3, 0.8, 0.3], (2, 1)))
    log = world.log(cold_start("shop"), 300, seed=2)
    assert best_fixed(log, CONFIG) == "a2"
    # An action that was lucky once is not worth most for certain.
    lucky = log.with_columns(
        action_id=pl.when(pl.int_range(pl.len()) == 0).then(pl.lit("a9")).otherwise("action_id"),
        action_ids=pl.col("action_ids").list.concat(pl.lit(["a9"])),
        reward=pl.when(pl.int_range(pl.len()) == 0).then(1.0).otherwise("reward"),
        propensity=pl.when(pl.int_range(pl.len()) == 0).then(0.003).otherwise("propensity"),
    )
    assert best_fixed(lucky, CONFIG) == "a2"


def test_slates_have_no_best_fixed_action(world: World) -> None:
    log = log_of(world, world.generation(1, Softmax(temperature=0.3)), "slate", 30, seed=5)
    with pytest.raises(
        InvalidInputError, match="policy: expected no best-fixed for a loop of slat"
    ):
        best_fixed(log, CONFIG)
