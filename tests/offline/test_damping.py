"""Damping: how far a generation goes from its champion."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.offline.damping import damped
from croupier.offline.lake import Lake
from croupier.offline.retrain import retrain
from croupier.policy.errors import GenerationError
from croupier.policy.events import Action
from croupier.policy.exploration import EpsilonGreedy, Softmax, SquareCB, Uniform
from croupier.policy.generation import Generation, cold_start
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import (
    AutoConfig,
    BootstrapConfig,
    Dampable,
    LinearOracle,
    SklearnConfig,
    SklearnOracle,
    VowpalWabbitConfig,
)
from croupier.policy.training import TrainingConfig
from tests.offline.logs import EPOCH_US
from tests.offline.worlds import World, random_world

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from croupier.policy.exploration import Exploration

ACTIONS = [Action(f"a{each}") for each in range(4)]
WORLD = random_world(6, 4, seed=1)
# What the champion believes is far from what the next generation will have learned.
TURNED = World(1.0 - WORLD.rewards)
LOGISTIC = SklearnConfig(estimator="sklearn.linear_model.LogisticRegression")


def oracle_of(world: World) -> LinearOracle:
    oracle = world.generation(1, Uniform()).oracle
    assert isinstance(oracle, LinearOracle)
    return oracle


def distance(one: Generation, other: Generation, log: pl.DataFrame) -> float:
    """Mean total variation over the contexts of a log, each counted as often as it is there."""
    counts = log["context"].value_counts()
    apart = [
        np.abs(WORLD.pmf(one, x) - WORLD.pmf(other, x)).sum() / 2.0
        for x in range(len(WORLD.rewards))
    ]
    weights = [
        counts.filter(counts["context"].str.contains(f'"x{x}"'))["count"].sum()
        for x in range(len(WORLD.rewards))
    ]
    return float(np.average(apart, weights=np.array(weights, dtype=np.float64)))


def served(oracle: Dampable, exploration: Exploration) -> Generation:
    like = WORLD.generation(2, exploration)
    return Generation("shop", 2, exploration, oracle, like.provenance)


@given(st.floats(0.0, 1.0))
@settings(max_examples=30, deadline=None)
def test_scores_on_the_way_are_on_the_way(step: float) -> None:
    one, other = oracle_of(WORLD), oracle_of(TURNED)
    between = one.towards(other, step)
    scores = [each.score({"x": "x2"}, ACTIONS) for each in (one, between, other)]
    np.testing.assert_allclose(
        scores[1], (1.0 - step) * scores[0] + step * scores[2], rtol=1e-5, atol=1e-6
    )


def test_the_ends_of_the_way_are_the_two() -> None:
    one, other = oracle_of(WORLD), oracle_of(TURNED)
    for step, expected in ((0.0, one), (1.0, other)):
        between = one.towards(other, step)
        assert between.weights_ is not None
        assert (between.weights_ == expected.weights_).all()


def test_there_is_nothing_between_different_oracles() -> None:
    other = SklearnOracle(SklearnConfig(params={"alpha": 2.0}))
    with pytest.raises(GenerationError):
        oracle_of(WORLD).towards(other, 0.5)


@given(
    st.lists(st.tuples(st.floats(-2.0, 2.0), st.floats(-2.0, 2.0)), min_size=2, max_size=8),
    st.floats(0.01, 5.0),
    st.floats(0.0, 1.0),
)
@settings(max_examples=200, deadline=None)
def test_softmax_moves_no_further_than_its_scores_let_it(
    pairs: list[tuple[float, float]], temperature: float, step: float
) -> None:
    """``TV <= max |f_1 - f_2| / (2 τ)``: Xu, "The Policy Cliff", 2025, for a bandit.

    So a step s of damping moves a policy by s times that at most.
    """
    first, second = np.array(pairs).T
    between = (1.0 - step) * first + step * second
    softmax = Softmax(temperature=temperature)
    moved = np.abs(softmax.pmf(between) - softmax.pmf(first)).sum() / 2.0
    assert moved <= step * np.abs(second - first).max() / (2.0 * temperature) + 1e-12


@pytest.mark.parametrize("limit", [0.05, 0.2, 0.4])
@pytest.mark.parametrize(
    "exploration", [SquareCB(), SquareCB(gamma_scale=5.0, floor=0.02), Softmax(temperature=0.1)]
)
def test_the_limit_is_kept_and_gone_up_to(exploration: Exploration, limit: float) -> None:
    champion = TURNED.generation(1, exploration)
    log = WORLD.log(cold_start("shop"), 500, seed=3)
    assert champion.provenance is not None
    rows = champion.provenance.training_rows
    whole = served(oracle_of(WORLD), exploration)
    assert distance(champion, whole, log) > 0.45
    oracle, step = damped(
        champion, oracle_of(WORLD), exploration, log, limit=limit, training_rows=rows, seed=0
    )
    assert 0.0 < step < 1.0
    assert distance(champion, served(oracle, exploration), log) <= limit + 1e-9
    before = oracle_of(TURNED)
    further = before.towards(oracle_of(WORLD), step + 1 / 1024)
    assert distance(champion, served(further, exploration), log) > limit


def test_what_is_near_enough_goes_all_the_way() -> None:
    champion = TURNED.generation(1, EpsilonGreedy(epsilon=0.5))
    log = WORLD.log(cold_start("shop"), 200, seed=3)
    learned = oracle_of(WORLD)
    found = damped(
        champion, learned, champion.exploration, log, limit=0.9, training_rows=24, seed=0
    )
    assert found == (learned, 1.0)


def test_exploration_alone_may_go_farther_than_the_limit() -> None:
    # What exploration changed can't be damped; the estimates stay as they were.
    champion = TURNED.generation(1, Uniform())
    log = WORLD.log(cold_start("shop"), 200, seed=3)
    exploration = SquareCB(gamma_scale=1e6)
    oracle, step = damped(
        champion, oracle_of(WORLD), exploration, log, limit=0.1, training_rows=24, seed=0
    )
    now = served(oracle, exploration)
    stayed = served(oracle_of(TURNED), exploration)
    assert distance(champion, now, log) <= distance(champion, stayed, log) + 1e-9
    assert 0.0 <= step <= 1.0


def test_cold_starts_and_other_oracles_are_not_damped_from(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = WORLD.log(cold_start("shop"), 200, seed=3)
    learned = oracle_of(WORLD)
    start = cold_start("shop")
    assert damped(start, learned, SquareCB(), log, limit=0.1, training_rows=24, seed=0) == (
        learned,
        1.0,
    )
    champion = TURNED.generation(1, SquareCB())
    other = SklearnOracle(LOGISTIC)
    with caplog.at_level(logging.WARNING):
        found = damped(champion, other, SquareCB(), log, limit=0.1, training_rows=24, seed=0)
    assert found == (other, 1.0)
    assert "generation 1 isn't damped from" in caplog.text


@pytest.mark.parametrize(
    "oracle",
    [VowpalWabbitConfig(), SklearnConfig(), LOGISTIC, AutoConfig(), AutoConfig(max_columns=3)],
    ids=["vowpal_wabbit", "ridge", "logistic", "auto", "auto, beyond"],
)
def test_a_loop_trains_damped_generations(tmp_path: Path, oracle: object) -> None:
    config = msgspec.convert(
        {
            "exploration": {"kind": "squarecb"},
            "oracle": msgspec.to_builtins(oracle),
            "training": {"max_total_variation": 0.15, "holdout": 0.0},
        },
        LoopConfig,
    )
    lake = Lake(tmp_path / "lake")

    def trained(number: int, champion: Generation) -> Generation:
        return retrain(
            lake,
            "shop",
            config,
            number=number,
            parent=champion.number,
            judge_share=0.3,
            seed=7,
            created_us=EPOCH_US,
            champion=champion,
        )

    before = TURNED.log(cold_start("shop"), 300, seed=1)
    lake.append("interactions", before)
    first = trained(1, cold_start("shop"))
    assert first.provenance is not None
    assert first.provenance.step == 1.0
    after = WORLD.log(cold_start("shop"), 2000, seed=2, first=300)
    lake.append("interactions", after)
    second = trained(2, first)
    assert second.provenance is not None
    assert 0.0 < second.provenance.step < 1.0
    # As on a thousand of the requests that it learned from. Inverse gap weights jump where the best
    # action becomes another one, here by up to a sixth for each context, and are not let past that.
    learned = after.filter(after["fold"] >= 300)
    assert 0.15 - 1 / 6 < distance(first, second, learned) <= 0.15 + 0.02
    second.save(tmp_path / "second")
    again = Generation.load(tmp_path / "second")
    assert again.provenance == second.provenance
    assert (WORLD.pmf(again, 0) == WORLD.pmf(second, 0)).all()
    same = trained(2, first)
    assert (WORLD.pmf(same, 0) == WORLD.pmf(second, 0)).all()


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"max_total_variation": 0.0}, r"max_total_variation must be in \(0, 1\]"),
        ({"max_total_variation": 1.1}, r"max_total_variation must be in \(0, 1\]"),
        ({"max_total_variation": 0.1, "start": "champion"}, "max_total_variation needs start"),
        ({"max_total_variation": 0.1, "class_weight": "balanced"}, "neither class weights"),
        ({"max_total_variation": 0.1, "calibration": "platt"}, "nor a calibration"),
    ],
)
def test_trainings_that_can_not_be_damped_are_refused(
    training: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        TrainingConfig(**training)  # type: ignore[arg-type]


def test_an_oracle_of_several_tables_can_not_be_damped() -> None:
    with pytest.raises(ValueError, match="needs an oracle that is linear in its weights"):
        LoopConfig(oracle=BootstrapConfig(), training=TrainingConfig(max_total_variation=0.1))
