"""The gate: promotes on evidence, and says why or why not."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import polars as pl
import pytest

from croupier.offline.evaluate import Evaluation, evaluate
from croupier.offline.gate import GateConfig, judge_challenger
from croupier.policy.exploration import EpsilonGreedy, Greedy
from croupier.policy.generation import Generation, cold_start
from croupier.policy.loop import LoopConfig
from tests.offline.worlds import World, random_world

PLENTY = 2500


@pytest.fixture(scope="module")
def world() -> World:
    return random_world(3, 4, seed=3)


@pytest.fixture(scope="module")
def better(world: World) -> Generation:
    return world.generation(1, EpsilonGreedy(epsilon=0.1))


@pytest.fixture(scope="module")
def evaluation(world: World, better: Generation) -> Evaluation:
    """A policy that knows the truth, against the uniform one that made the log."""
    log = world.log(cold_start("shop"), PLENTY, seed=1)
    return evaluate(log, cold_start("shop"), better, LoopConfig())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_better_policy_is_promoted_and_a_worse_one_is_not(
    world: World, better: Generation, seed: int
) -> None:
    """The difference is eight standard errors and more: neither mistake happens by chance."""
    worse = cold_start("shop")
    assert world.value(better) > world.value(worse) + 0.2
    log = world.log(worse, PLENTY, seed)
    promoted = judge_challenger(GateConfig(), evaluate(log, worse, better, LoopConfig()))
    assert promoted.promote
    refused = judge_challenger(GateConfig(), evaluate(log, better, worse, LoopConfig()))
    assert not refused.promote
    assert "not shown to be above +0" in refused.reasons[0]


def test_the_same_policy_is_no_better_than_itself(world: World, better: Generation) -> None:
    log = world.log(cold_start("shop"), PLENTY, seed=4)
    verdict = judge_challenger(GateConfig(), evaluate(log, better, better, LoopConfig()))
    assert not verdict.promote


def test_a_better_policy_waits_for_evidence(world: World, better: Generation) -> None:
    log = world.log(cold_start("shop"), 25, seed=1)
    verdict = judge_challenger(
        GateConfig(), evaluate(log, cold_start("shop"), better, LoopConfig())
    )
    assert not verdict.promote
    assert "effective sample size" in verdict.reasons[0]


def test_a_small_effective_sample_size_is_not_enough(evaluation: Evaluation) -> None:
    """However good the figures look."""
    ess = evaluation.policies[1].support.ess
    assert judge_challenger(GateConfig(min_ess=ess), evaluation).promote
    verdict = judge_challenger(GateConfig(min_ess=math.nextafter(ess, math.inf)), evaluation)
    assert not verdict.promote
    assert len(verdict.reasons) == 1
    assert "the log says too little about generation 1" in verdict.reasons[0]


def test_the_effective_sample_size_shrinks_with_what_the_log_hardly_shows(world: World) -> None:
    """A log that shows the challenger's actions one time in eighty."""
    shy = world.generation(1, EpsilonGreedy(epsilon=0.05), -world.rewards)
    log = world.log(shy, PLENTY, seed=1)
    daring = world.generation(2, Greedy())
    evaluation = evaluate(log, shy, daring, LoopConfig())
    assert evaluation.left_out == 0
    assert evaluation.policies[1].estimates["dr"].ess < 50
    verdict = judge_challenger(GateConfig(), evaluation)
    assert not verdict.promote
    assert "effective sample size" in verdict.reasons[0]


def test_the_margin_is_what_the_lower_end_must_exceed(evaluation: Evaluation) -> None:
    lower = evaluation.differences["dr"].lower
    assert lower > 0.1
    below = math.nextafter(lower, -math.inf)
    assert judge_challenger(GateConfig(margin=below), evaluation).promote
    assert not judge_challenger(GateConfig(margin=lower), evaluation).promote
    # A negative margin lets through what is not much worse.
    swapped = msgspec.structs.replace(
        evaluation, policies=evaluation.policies[::-1], differences=evaluation.differences
    )
    assert judge_challenger(GateConfig(margin=-1.0), swapped).promote


@pytest.mark.parametrize("kind", ["ips", "snips", "dr"])
def test_the_named_estimator_decides(evaluation: Evaluation, kind: str) -> None:
    config = msgspec.convert({"estimator": kind}, GateConfig)
    estimate = evaluation.differences[config.estimator]
    verdict = judge_challenger(config, evaluation)
    assert verdict.promote
    shown = f"[{estimate.lower:+.4f}, {estimate.upper:+.4f}]"
    assert verdict.reasons == [
        f"generation 1 - generation 0 is {estimate.value:+.4f}, 95 % interval {shown}, above +0"
    ]
    hopeless = msgspec.structs.replace(estimate, lower=-0.1)
    others = evaluation.differences | {config.estimator: hopeless}
    changed = msgspec.structs.replace(evaluation, differences=others)
    assert not judge_challenger(config, changed).promote


def test_an_interval_without_an_end_is_no_evidence(evaluation: Evaluation) -> None:
    unknown = msgspec.structs.replace(evaluation.differences["dr"], lower=math.nan)
    changed = msgspec.structs.replace(
        evaluation, differences=evaluation.differences | {"dr": unknown}
    )
    assert not judge_challenger(GateConfig(), changed).promote


def test_confidence_widens_the_interval(world: World, better: Generation) -> None:
    log = world.log(cold_start("shop"), 300, seed=9)
    widths = []
    for confidence in (0.5, 0.95, 0.999):
        found = evaluate(
            log, cold_start("shop"), better, LoopConfig(), confidence=confidence
        ).differences["dr"]
        widths.append(found.upper - found.lower)
    assert widths == sorted(widths)
    assert len(np.unique(widths)) == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("confidence", 0.49),
        ("confidence", 1.0),
        ("min_ess", 0.0),
        ("min_ess", math.nan),
        ("margin", math.nan),
        ("margin", -math.inf),
    ],
)
def test_a_gate_that_can_t_be_meant_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        GateConfig(**{field: value})  # type: ignore[arg-type]


def test_what_the_log_could_never_show_is_objected_to(world: World, better: Generation) -> None:
    """In one of three contexts the log never plays what the challenger would choose there."""
    best = int(world.rewards[0].argmax())
    log = world.log(cold_start("shop"), PLENTY, seed=1)
    blind = pl.col("context").str.contains("x0")
    log = log.filter(~(blind & (pl.col("chosen") == best)))
    without = [0.0 if each == best else 1 / 3 for each in range(4)]
    log = log.with_columns(
        pmf=pl.when(blind).then(pl.lit(without, pl.List(pl.Float64))).otherwise("pmf"),
        propensity=pl.when(blind).then(1 / 3).otherwise("propensity"),
    )
    evaluation = evaluate(log, cold_start("shop"), better, LoopConfig())
    challenger = evaluation.policies[1]
    share = len(log.filter(blind)) / len(log)
    assert evaluation.left_out == len(log.filter(blind))
    assert challenger.support.deficient == pytest.approx(share * world.pmf(better, 0)[best])
    verdict = judge_challenger(GateConfig(), evaluation)
    assert not verdict.promote
    (reason,) = verdict.reasons
    assert "of the choices of generation 1 could never have been logged" in reason
    assert judge_challenger(GateConfig(max_deficient=0.5), evaluation).promote


def test_a_log_that_did_not_explore_for_a_while_is_judged_by_the_rest(
    world: World, better: Generation
) -> None:
    """As after a kill switch: what was played then was nobody's choice."""
    log = world.log(cold_start("shop"), PLENTY, seed=1)
    killed = pl.int_range(pl.len()) < 500
    log = log.with_columns(
        pmf=pl.when(killed).then(pl.lit([1.0, 0.0, 0.0, 0.0])).otherwise("pmf"),
        chosen=pl.when(killed).then(0).otherwise("chosen"),
        propensity=pl.when(killed).then(1.0).otherwise("propensity"),
    )
    evaluation = evaluate(log, cold_start("shop"), better, LoopConfig())
    assert evaluation.left_out == 500
    assert evaluation.policies[1].support.deficient == 0.0
    assert judge_challenger(GateConfig(), evaluation).promote
