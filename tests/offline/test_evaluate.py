"""Evaluations, against values that are known exactly."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import get_args

import numpy as np
import polars as pl
import pytest
from scipy import stats

from croupier.offline.evaluate import LOGGED, EstimatorName, Evaluation, evaluate
from croupier.offline.gate import GateConfig, judge_challenger
from croupier.policy.errors import NotEnoughDataError
from croupier.policy.exploration import Conservative, EpsilonGreedy, Greedy, Softmax
from croupier.policy.generation import Generation, cold_start
from croupier.policy.loop import LoopConfig
from croupier.policy.slates import inclusion
from tests.offline.shapes import SHAPES, Shape, log_of
from tests.offline.worlds import World, random_world

KINDS: tuple[EstimatorName, ...] = get_args(EstimatorName)
REPEATS = 40
ROWS = 200
FALSE_ALARM = 1e-3


@dataclass(frozen=True)
class Study:
    """Many evaluations of the same two policies, on logs of their own."""

    truth: tuple[float, float]
    evaluations: list[Evaluation]


def study(world: World, logger: Generation, champion: Generation, challenger: Generation) -> Study:
    return Study(
        (world.value(champion), world.value(challenger)),
        [
            evaluate(world.log(logger, ROWS, seed), champion, challenger, LoopConfig())
            for seed in range(REPEATS)
        ],
    )


@pytest.fixture(scope="module")
def unequal() -> Study:
    """A log of an ε-greedy policy with wrong beliefs; one action is excluded in one context."""
    rewards = random_world(3, 4, seed=3).rewards
    world = World(rewards, excluded=(None, 2, None))
    logger = world.generation(1, EpsilonGreedy(epsilon=0.5), rewards[:, ::-1])
    champion = world.generation(2, Softmax(temperature=0.3), rewards[::-1])
    return study(world, logger, champion, world.generation(3, EpsilonGreedy(epsilon=0.2)))


@pytest.fixture(scope="module")
def equal() -> Study:
    """Policies that prefer different actions of the same worth, by oracles that are wrong."""
    world = World(np.tile([0.2, 0.5, 0.2, 0.5], (2, 1)))
    champion = world.generation(1, EpsilonGreedy(epsilon=0.2), np.tile([0, 1, 0, 0.0], (2, 1)))
    challenger = world.generation(2, EpsilonGreedy(epsilon=0.2), np.tile([0, 0, 0, 1.0], (2, 1)))
    assert world.value(champion) == pytest.approx(world.value(challenger))
    return study(world, cold_start("shop"), champion, challenger)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["champion", "challenger", "difference"])
@pytest.mark.parametrize("which", ["equal", "unequal"])
def test_intervals_cover_the_truth(
    request: pytest.FixtureRequest, which: str, what: str, kind: EstimatorName
) -> None:
    """At 95 % nominal. False alarm: 1e-3 for each of the 18, with seeds that are fixed."""
    found: Study = request.getfixturevalue(which)
    first, second = found.truth
    truth = {"champion": first, "challenger": second, "difference": second - first}[what]
    covered = 0
    for evaluation in found.evaluations:
        champion, challenger = evaluation.policies
        estimate = {
            "champion": champion.estimates[kind],
            "challenger": challenger.estimates[kind],
            "difference": evaluation.differences[kind],
        }[what]
        assert estimate.lower <= estimate.value <= estimate.upper
        covered += estimate.lower <= truth <= estimate.upper
    assert covered >= stats.binom.ppf(FALSE_ALARM, REPEATS, 0.95)


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_have_no_bias_to_speak_of(unequal: Study, kind: EstimatorName) -> None:
    """Their mean over all logs is within 4 standard errors: a false alarm in 1e-4."""
    values = [each.policies[1].estimates[kind].value for each in unequal.evaluations]
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert abs(np.mean(values) - unequal.truth[1]) < 4 * error


def test_the_gate_promotes_an_equal_policy_no_oftener_than_it_says(equal: Study) -> None:
    """Nominally in 2.5 % of nights. False alarm: 1e-3."""
    promoted = sum(judge_challenger(GateConfig(), each).promote for each in equal.evaluations)
    assert promoted <= stats.binom.isf(FALSE_ALARM, REPEATS, 0.025)


@pytest.fixture(scope="module")
def world() -> World:
    return random_world(3, 4, seed=3)


@pytest.fixture(scope="module")
def log(world: World) -> pl.DataFrame:
    return world.log(cold_start("shop"), 600, seed=5)


def test_the_log_s_own_policy_is_worth_the_mean_reward(world: World, log: pl.DataFrame) -> None:
    evaluation = evaluate(log, None, world.generation(1, Greedy()), LoopConfig())
    logged = evaluation.policies[0]
    assert logged.name == LOGGED
    for estimate in logged.estimates.values():
        assert estimate.value == pytest.approx(log["reward"].mean(), abs=1e-12)
        assert estimate.ess == pytest.approx(600)
        assert estimate.max_weight == 1.0
    # As does the same policy when it is asked.
    again = evaluate(log, cold_start("shop"), world.generation(1, Greedy()), LoopConfig())
    for kind in ("ips", "snips"):
        assert evaluation.differences[kind].value == pytest.approx(again.differences[kind].value)


def test_a_policy_against_itself_differs_by_nothing(world: World, log: pl.DataFrame) -> None:
    policy = world.generation(1, EpsilonGreedy())
    for difference in evaluate(log, policy, policy, LoopConfig()).differences.values():
        assert difference.value == pytest.approx(0.0, abs=1e-12)
        assert difference.lower <= 0.0 <= difference.upper


def test_the_cold_start_can_challenge(world: World, log: pl.DataFrame) -> None:
    """It has no oracle, and so no reward model: doubly robust is then no more than IPS."""
    evaluation = evaluate(log, world.generation(1, Greedy()), cold_start("shop"), LoopConfig())
    estimates = evaluation.policies[1].estimates
    assert estimates["dr"].value == pytest.approx(estimates["ips"].value)
    assert evaluation.differences["dr"].value < 0


def test_figures_say_what_they_rest_on(world: World, log: pl.DataFrame) -> None:
    challenger = world.generation(3, Greedy())
    steps: list[tuple[int, int]] = []
    evaluation = evaluate(
        log,
        world.generation(2, Greedy()),
        challenger,
        LoopConfig(),
        confidence=0.8,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert (evaluation.loop, evaluation.rows, evaluation.left_out) == ("shop", 600, 0)
    assert evaluation.nonzero_rewards == (log["reward"] != 0).sum()
    assert [each.name for each in evaluation.policies] == ["generation 2", "generation 3"]
    # A greedy policy on a uniform log of four actions: weight 4 on one row in four.
    for estimate in evaluation.policies[1].estimates.values():
        assert (estimate.confidence, estimate.n, estimate.max_weight) == (0.8, 600, 4.0)
        assert 100 < estimate.ess < 200
    assert steps == [(500, 600), (600, 600)]


def test_excluded_actions_are_nobody_s_choice(world: World) -> None:
    """The best action is barred in every context; a policy that wants it takes the next best."""
    best = world.rewards.argmax(axis=1)
    barred = World(world.rewards, excluded=tuple(int(each) for each in best))
    log = barred.log(cold_start("shop"), 400, seed=6)
    assert not (
        log["chosen"]
        == log["context"].replace_strict(
            {f'{{"x":"x{x}"}}': int(each) for x, each in enumerate(best)}
        )
    ).any()
    greedy = barred.generation(1, Greedy())
    evaluation = evaluate(log, None, greedy, LoopConfig())
    truth = float(
        np.mean([np.delete(row, each).max() for row, each in zip(world.rewards, best, strict=True)])
    )
    assert barred.value(greedy) == pytest.approx(truth)
    for kind in KINDS:
        estimate = evaluation.policies[1].estimates[kind]
        assert estimate.max_weight == pytest.approx(3.0)
        assert abs(estimate.mean_weight - 1.0) < 0.25
        assert estimate.lower <= truth <= estimate.upper


# What a log can't tell.


def played_baseline(log: pl.DataFrame) -> pl.DataFrame:
    """The rows as if the application's own choice had been played: the first action, always."""
    size = len(log["action_ids"][0])
    return log.filter(pl.col("chosen") == 0).with_columns(
        pmf=pl.lit([1.0] + [0.0] * (size - 1)),
        propensity=pl.lit(1.0),
        learning_mode=pl.lit("apprentice"),
    )


def test_rows_without_a_choice_judge_nobody(world: World, log: pl.DataFrame) -> None:
    """An apprentice's rows show one action alone; what others would have brought is unknown.

    They must not be judged on: here their rewards are all 1, and a policy that prefers the
    baseline would be credited with that.
    """
    apprentice = played_baseline(log).with_columns(reward=pl.lit(1.0))
    champion, challenger = cold_start("shop"), world.generation(1, EpsilonGreedy())
    mixed = evaluate(pl.concat([apprentice, log]), champion, challenger, LoopConfig())
    alone = evaluate(log, champion, challenger, LoopConfig())
    assert mixed.left_out == len(apprentice)
    assert (mixed.rows, mixed.policies) == (alone.rows, alone.policies)
    assert mixed.differences == alone.differences


def test_a_log_of_the_baseline_alone_can_t_promote(world: World, log: pl.DataFrame) -> None:
    apprentice = played_baseline(log)
    challenger = world.generation(1, EpsilonGreedy())
    with pytest.raises(NotEnoughDataError, match=rf"got 0, besides {len(apprentice)} that say no"):
        evaluate(apprentice, cold_start("shop"), challenger, LoopConfig())


def test_a_greedy_log_judges_where_nothing_else_is_wanted(world: World) -> None:
    """In one context of three the policies agree with the log; the other two it never tried."""
    twisted = world.rewards.copy()
    twisted[1:] = 1.0 - twisted[1:]
    log = world.log(world.generation(1, Greedy()), 300, seed=7)
    challenger = world.generation(2, Greedy(), twisted)
    evaluation = evaluate(log, None, challenger, LoopConfig())
    contexts = log["context"].value_counts()
    assert evaluation.rows == contexts.filter(pl.col("context") == '{"x":"x0"}')["count"].item()
    for difference in evaluation.differences.values():
        assert difference.value == pytest.approx(0.0, abs=1e-12)


def test_an_imported_log_is_taken_at_its_word(world: World, log: pl.DataFrame) -> None:
    """Without a pmf nobody knows what else could have been drawn, nor the largest weight."""
    imported = log.with_columns(pmf=pl.lit(None, dtype=pl.List(pl.Float64)))
    policy = world.generation(1, EpsilonGreedy())
    evaluation = evaluate(imported, None, policy, LoopConfig())
    known = evaluate(log, None, policy, LoopConfig())
    assert (evaluation.rows, evaluation.left_out) == (600, 0)
    for kind in KINDS:
        wide, narrow = (each.policies[1].estimates[kind] for each in (evaluation, known))
        assert wide.value == narrow.value
        assert wide.lower <= narrow.lower <= narrow.upper <= wide.upper


def test_requests_that_can_t_be_encoded_are_left_out(world: World, log: pl.DataFrame) -> None:
    spoiled = log.with_columns(
        context=pl.when(pl.col("offset") <= 3).then(pl.lit('{"big":1e39}')).otherwise("context")
    )
    policy = world.generation(1, EpsilonGreedy())
    for champion in (None, cold_start("shop")):
        evaluation = evaluate(spoiled, champion, policy, LoopConfig())
        without = evaluate(log[3:], champion, policy, LoopConfig())
        assert (evaluation.rows, evaluation.left_out) == (597, 3)
        assert evaluation.differences == without.differences


def test_sums_may_leave_the_range_of_a_single_reward(world: World, log: pl.DataFrame) -> None:
    """The range is widened to what is there; a night must not fail on it."""
    summed = log.with_columns(reward=pl.col("reward") * 3.0)
    policy = world.generation(1, EpsilonGreedy())
    wide = evaluate(summed, None, policy, LoopConfig(aggregation="sum"))
    told = evaluate(summed, None, policy, LoopConfig(aggregation="sum", reward_max=3.0))
    assert wide == told
    assert wide.policies[0].estimates["ips"].value == pytest.approx(summed["reward"].mean())


def test_subsampled_rows_count_for_those_they_stand_for(world: World) -> None:
    """Clicks are all kept, one in four of the rest; the estimate is that of the whole log."""
    whole = world.log(cold_start("shop"), 3000, seed=8)
    kept = whole.with_columns(
        keep_prob=pl.when(pl.col("reward") > 0).then(1.0).otherwise(0.25)
    ).filter(pl.Series(np.random.default_rng(1).random(3000)) < pl.col("keep_prob"))
    assert len(kept) < 2500
    policy = world.generation(1, EpsilonGreedy())
    evaluation = evaluate(kept, None, policy, LoopConfig())
    for side, truth in enumerate((world.value(cold_start("shop")), world.value(policy))):
        for estimate in evaluation.policies[side].estimates.values():
            assert estimate.lower <= truth <= estimate.upper
            assert abs(estimate.value - truth) < 0.08


def test_too_few_rows_are_said_to_be_too_few(world: World, log: pl.DataFrame) -> None:
    policy = world.generation(1, EpsilonGreedy())
    with pytest.raises(NotEnoughDataError, match=r"at least 20 judged interactions, got 19$"):
        evaluate(log[:19], None, policy, LoopConfig())
    assert evaluate(log[:20], None, policy, LoopConfig()).rows == 20


@pytest.mark.parametrize("size", [2, 3])
def test_a_place_of_a_slate_is_worth_its_inclusion_probabilities(size: int) -> None:
    """The mean over 12 logs is within 4 standard errors of the exact value: false alarm 1e-4 each.

    One policy is certain of an action, the other is not; an action is excluded in one context.
    """
    world = World(random_world(3, 5, seed=3).rewards, excluded=(None, 2, None))
    logger = world.generation(1, EpsilonGreedy(epsilon=0.7), world.rewards[:, ::-1])
    policies = (
        world.generation(2, EpsilonGreedy(epsilon=0.2)),
        world.generation(3, Softmax(temperature=0.3), world.rewards[::-1]),
    )
    truth = [
        np.mean([inclusion(world.pmf(policy, x), size) / size @ world.rewards[x] for x in range(3)])
        for policy in policies
    ]
    evaluations = [
        evaluate(log_of(world, logger, "slate", 120, seed, size=size), *policies, LoopConfig())
        for seed in range(12)
    ]
    for side, kind in itertools.product(range(2), KINDS):
        values = [each.policies[side].estimates[kind].value for each in evaluations]
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        assert abs(np.mean(values) - truth[side]) < 4 * error
    assert {each.left_out for each in evaluations} == {0}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_policy_that_made_a_log_of_any_shape_has_weights_of_one(shape: Shape) -> None:
    """What is judged is what was served, also where the pmf hangs on the baseline."""
    world = World(random_world(3, 4, seed=3).rewards, excluded=(None, 1, None))
    exploration = Conservative(inner=Softmax(temperature=0.3), alpha=0.3)
    policy = world.generation(1, exploration)
    log = log_of(world, policy, shape, 100, seed=5)
    evaluation = evaluate(log, None, policy, LoopConfig())
    for estimate in evaluation.policies[1].estimates.values():
        assert estimate.max_weight == pytest.approx(1.0, abs=1e-9)
    for kind in ("ips", "snips"):
        assert evaluation.differences[kind].value == pytest.approx(0.0, abs=1e-9)
    assert evaluation.rows == 200


def test_slates_of_the_baseline_say_nothing_about_a_policy(world: World) -> None:
    policy = world.generation(1, EpsilonGreedy(epsilon=0.2))
    drawn = log_of(world, policy, "slate", 50, seed=1)
    played = log_of(world, policy, "slate", 30, seed=2, mode="logging_only")
    evaluation = evaluate(pl.concat([drawn, played]), None, policy, LoopConfig())
    assert (evaluation.rows, evaluation.left_out) == (100, 60)
