"""Adaptive memory: how fast to forget, against the filter's gain and in logs that do change."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croupier.offline.lake import Lake
from croupier.offline.memory import BLOCKS, ages_in_blocks, memory_of_steps
from croupier.offline.retrain import retrain
from croupier.policy.errors import ConfigError, InvalidInputError
from croupier.policy.generation import Generation, Memory, cold_start
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import SklearnConfig, VowpalWabbitConfig
from croupier.policy.training import TrainingConfig
from tests.offline.logs import EPOCH_US
from tests.offline.worlds import World, random_world

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# Ridge regression, which doesn't follow the order of its rows by itself.
ADAPTIVE = LoopConfig(
    oracle=SklearnConfig(), training=TrainingConfig(memory="adaptive", holdout=0.0)
)
WORLD = random_world(6, 4, seed=1)
TURNED = World(1.0 - WORLD.rewards)


def walks(
    drift: float, noise: float, *, blocks: int, things: int, seed: int
) -> NDArray[np.float64]:
    """Estimates of a local level: a random walk with steps of `drift`, seen with noise."""
    rng = np.random.default_rng(seed)
    level = np.cumsum(drift * rng.standard_normal((blocks, things)), axis=0)
    return np.asarray(level + noise * rng.standard_normal((blocks, things)))


def steady_gain(drift: float, noise: float) -> float:
    """Kalman's gain, by going on until it doesn't change: an independent way to it."""
    variance = 1.0
    for _ in range(100_000):
        gain = variance / (variance + noise**2)
        variance = (1.0 - gain) * variance + drift**2
    return variance / (variance + noise**2)


def trained(lake: Lake, config: LoopConfig = ADAPTIVE, seed: int = 0) -> Generation:
    return retrain(
        lake,
        "shop",
        config,
        number=1,
        parent=0,
        judge_share=0.3,
        seed=seed,
        created_us=EPOCH_US,
    )


def remembered(generation: Generation) -> Memory:
    assert generation.provenance is not None
    memory = generation.provenance.memory
    assert memory is not None
    return memory


@pytest.mark.parametrize(("drift", "noise"), [(0.1, 1.0), (0.5, 1.0), (1.0, 1.0), (2.0, 0.5)])
def test_the_gain_is_that_of_the_filter(drift: float, noise: float) -> None:
    # Of 40,000 things: what is allowed for is more than five standard deviations, by simulation.
    memory = memory_of_steps(walks(drift, noise, blocks=16, things=40_000, seed=3))
    assert memory is not None
    assert memory.noise == pytest.approx(noise**2, abs=0.06)
    assert memory.drift == pytest.approx(drift**2, rel=0.05, abs=0.012)
    assert 1.0 - memory.kept == pytest.approx(steady_gain(drift, noise), abs=0.03)
    expected = -(noise**2) / (drift**2 + 2.0 * noise**2)
    assert memory.autocorrelation == pytest.approx(expected, abs=0.01)


def test_what_only_swings_forgets_nothing() -> None:
    swinging = np.tile(np.array([[1.0], [-1.0]]), (4, 50)) * np.linspace(0.1, 1.0, 50)
    memory = memory_of_steps(swinging)
    assert memory is not None
    assert memory.autocorrelation == pytest.approx(-1.0)
    assert (memory.kept, memory.drift) == (1.0, 0.0)


def test_what_walks_without_chance_forgets_fast() -> None:
    memory = memory_of_steps(np.outer(np.arange(16.0), np.linspace(-1.0, 1.0, 9)))
    assert memory is not None
    assert memory.kept < 0.2


@given(
    st.integers(3, 9),
    st.integers(1, 20),
    st.floats(0.001, 5.0),
    st.floats(0.001, 5.0),
    st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_a_share_is_kept_whatever_is_seen(
    blocks: int, things: int, drift: float, noise: float, seed: int
) -> None:
    seen = walks(drift, noise, blocks=blocks, things=things, seed=seed)
    memory = memory_of_steps(seen)
    assert memory is not None
    assert 0.01 <= memory.kept <= 1.0
    assert memory.noise >= 0.0
    assert memory.drift >= 0.0
    moved = memory_of_steps(seen + 3.0)
    scaled = memory_of_steps(2.0 * seen)
    assert moved is not None
    assert scaled is not None
    assert moved.kept == pytest.approx(memory.kept, abs=0.01)
    assert scaled.kept == pytest.approx(memory.kept, abs=0.01)


@pytest.mark.parametrize(
    "estimates", [[1.0, 2.0, 3.0], np.zeros((2, 5)), np.full((4, 2), math.nan)]
)
def test_estimates_that_say_nothing_are_refused(estimates: NDArray[np.float64]) -> None:
    with pytest.raises(InvalidInputError, match=r"expected finite numbers of shape \(B >= 3, C\)"):
        memory_of_steps(estimates)


def test_ages_are_of_blocks_of_as_many_rows_in_the_order_of_time() -> None:
    log = WORLD.log(cold_start("shop"), 800, seed=1)
    ages = ages_in_blocks(log)
    assert (np.diff(ages) <= 0.0).all()
    assert np.bincount(ages.astype(np.int64)).tolist() == [50] * BLOCKS
    mixed = log.sample(fraction=1.0, shuffle=True, seed=3)
    known = dict(zip(log["decision_id"], ages, strict=True))
    assert ages_in_blocks(mixed).tolist() == [known[each] for each in mixed["decision_id"]]
    timeless = log.with_columns(ts=pl.lit(None, dtype=log.schema["ts"]))
    assert set(ages_in_blocks(timeless)) == {BLOCKS - 1.0}


def test_a_log_of_a_world_that_turns_forgets_and_one_that_stays_does_not(tmp_path: Path) -> None:
    start = cold_start("shop")
    steady, turning = Lake(tmp_path / "steady"), Lake(tmp_path / "turning")
    steady.append("interactions", WORLD.log(start, 6000, seed=1))
    for part in range(8):
        world = TURNED if part >= 6 else WORLD
        turning.append("interactions", world.log(start, 750, seed=2, first=750 * part))
    stays, turns = trained(steady), trained(turning)
    assert remembered(stays).kept > 0.75
    # The turn is one step of seven, and as large as all rewards.
    assert remembered(turns).kept < remembered(stays).kept - 0.1
    plain = msgspec.structs.replace(ADAPTIVE, training=TrainingConfig(holdout=0.0))
    assert TURNED.value(turns) > TURNED.value(trained(turning, plain)) + 0.1
    assert remembered(trained(turning)) == remembered(turns)


def test_of_too_few_rows_nothing_is_measured(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.append("interactions", WORLD.log(cold_start("shop"), 300, seed=1))
    generation = trained(lake)
    assert generation.provenance is not None
    assert generation.provenance.memory is None


def test_it_is_kept_with_the_generation(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    lake.append("interactions", WORLD.log(cold_start("shop"), 2000, seed=1))
    generation = trained(lake)
    generation.save(tmp_path / "generation")
    assert Generation.load(tmp_path / "generation").provenance == generation.provenance


def test_it_goes_with_vowpal_wabbit_and_importance_weights(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.append("interactions", WORLD.log(cold_start("shop"), 2000, seed=1))
    weighted = TrainingConfig(memory="adaptive", holdout=0.0, weighting="ips")
    regression = msgspec.structs.replace(ADAPTIVE, training=weighted)
    assert remembered(trained(lake, regression)).kept > 0.0
    bandit = msgspec.structs.replace(ADAPTIVE, oracle=VowpalWabbitConfig())
    assert remembered(trained(lake, bandit)).kept > 0.0


def test_it_needs_a_fresh_start() -> None:
    with pytest.raises(ValueError, match="an adaptive memory"):
        TrainingConfig(memory="adaptive", start="champion")


def test_an_apprentice_learns_no_rewards_to_measure_it_by() -> None:
    with pytest.raises((ConfigError, ValueError), match="apprentice"):
        msgspec.structs.replace(ADAPTIVE, learning_mode="apprentice")
