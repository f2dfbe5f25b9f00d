"""Series of generations in a small world whose truth can be written down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl
import pytest

from croupier.offline.lake import Lake
from croupier.offline.retrain import config_digest
from croupier.offline.study.arms import ORACLES, PLAIN, UNIFORM, oscillation_arms
from croupier.offline.study.environment import Traffic
from croupier.offline.study.series import SERIES_SCHEMA, Arm, run_series
from croupier.policy.events import Action
from croupier.policy.exploration import Greedy, Softmax, SquareCB, Uniform
from croupier.policy.loop import LoopConfig
from croupier.policy.requests import DecisionRequest
from croupier.policy.traffic import UniformSlice
from croupier.policy.training import TrainingConfig

if TYPE_CHECKING:
    from pathlib import Path

HOUR = 3_600_000_000
CHANCES = np.array([[0.9, 0.3, 0.5], [0.2, 0.8, 0.4]])
SHORT = TrainingConfig(window_generations=1, holdout=0.0)


@dataclass(frozen=True)
class Town:
    """Two kinds of visitor; the rewards of one in four are known a generation too late."""

    size: int = 400

    def traffic(self, generation: int) -> Traffic:
        rng = np.random.default_rng((7, generation))
        kinds = rng.integers(2, size=self.size)
        ts_us = generation * HOUR + np.sort(rng.integers(HOUR, size=self.size))
        late = np.arange(self.size) % 4 == 3
        return self._of(kinds, ts_us, np.where(late, ts_us + HOUR, ts_us))

    def panel(self, generation: int) -> Traffic:
        ts_us = np.full(2, generation * HOUR, dtype=np.int64)
        return self._of(np.arange(2), ts_us, ts_us)

    def end_us(self, generation: int) -> int:
        return (generation + 1) * HOUR

    def _of(self, kinds: np.ndarray, ts_us: np.ndarray, known_us: np.ndarray) -> Traffic:
        return Traffic(
            requests=[
                DecisionRequest(
                    actions=[Action(each) for each in "abc"], context={"kind": f"k{kind}"}
                )
                for kind in kinds
            ],
            segments=[f"k{kind}" for kind in kinds],
            ts_us=ts_us,
            known_us=known_us,
            expected=[CHANCES[kind] for kind in kinds],
        )


def series(directory: Path, arm: Arm, *, generations: int = 4, seed: int = 0) -> pl.DataFrame:
    lake = directory / f"{arm.name}-{seed}-{len(list(directory.iterdir()))}"
    return run_series(Town(), arm, generations=generations, seed=seed, directory=lake)


def arm(**config: object) -> Arm:
    changes = {"oracle": ORACLES["logistic"], "training": SHORT} | config
    return Arm("arm", msgspec.structs.replace(LoopConfig(), **changes))


def test_a_greedy_policy_comes_to_the_best(tmp_path: Path) -> None:
    rows = series(tmp_path, arm(exploration=SquareCB(gamma_scale=1e6)))
    assert rows.schema == SERIES_SCHEMA
    assert rows["generation"].to_list() == [0, 1, 2, 3]
    # The cold start is uniform, and what it has seen is enough to tell .9 from .5.
    assert rows["value"][0] == pytest.approx(CHANCES.mean())
    assert rows["value"][1] == pytest.approx(0.85, abs=1e-3)
    assert rows["uniform_value"].to_list() == pytest.approx([CHANCES.mean()] * 4)
    assert rows["best_value"].to_list() == pytest.approx([0.85] * 4)
    assert rows["entropy"][0] == pytest.approx(np.log(3))
    assert rows["min_propensity"][0] == pytest.approx(1 / 3)
    assert rows["coverage"][0] == 1.0
    assert rows["flip_rate"][0] is None
    assert rows["flip_rate"][1] is not None


def test_what_is_known_too_late_is_not_learned_from(tmp_path: Path) -> None:
    rows = series(tmp_path, arm(exploration=Uniform()))
    # Of four, one is known when the next generation is over; a window of one forgets it.
    learned = rows["learned_rows"].to_list()
    assert learned[0] == 0
    assert all(each == pytest.approx(0.8 * 300, abs=4 * 7) for each in learned[1:])
    longer = TrainingConfig(window_generations=2, holdout=0.0)
    rows = series(tmp_path, arm(exploration=Uniform(), training=longer))
    assert rows["learned_rows"][1] == learned[1]
    assert rows["learned_rows"].to_list()[2:] == [
        pytest.approx(0.8 * 700, abs=4 * 11) for _ in range(2)
    ]


def test_the_log_of_the_generation_before_says_what_one_is_worth(tmp_path: Path) -> None:
    rows = series(tmp_path, arm(exploration=Softmax(temperature=0.3)))
    assert rows["snips"][0] is None
    for row in rows.tail(3).iter_rows(named=True):
        # 80 rows judge, and kinds are not quite as often in them as on the panel: 3 deviations.
        assert row["snips"] == pytest.approx(row["value"], abs=3 * 0.5 / 80**0.5)
        assert row["snips_lower"] <= row["snips"] <= row["snips_upper"]
        assert row["reward"] == pytest.approx(row["value"], abs=3 * 0.5 / 400**0.5)
        assert 1.0 < row["ess"] <= 120.0
        assert 0.5 < row["auc"] < 1.0


def test_a_control_logs_uniformly_and_is_valued_as_the_arm(tmp_path: Path) -> None:
    plain = arm(exploration=SquareCB(gamma_scale=1e6))
    rows = series(tmp_path, Arm("control", plain.config, logs_uniformly=True))
    assert rows["min_propensity"].to_list() == pytest.approx([1 / 3] * 4)
    assert rows["value"][3] == pytest.approx(0.85, abs=1e-3)
    assert rows["reward"][3] == pytest.approx(CHANCES.mean(), abs=0.1)


def test_rewards_of_the_same_choice_are_the_same_in_all_arms(tmp_path: Path) -> None:
    # Both cold starts are uniform, and draw with the same keys.
    one, other = (
        series(tmp_path, arm(exploration=each)) for each in (SquareCB(gamma_scale=1e9), Uniform())
    )
    assert one["reward"][0] == other["reward"][0]
    assert one["reward"][3] > other["reward"][3]
    again = series(tmp_path, arm(exploration=SquareCB(gamma_scale=1e9)))
    assert again.equals(one)
    assert not series(tmp_path, arm(exploration=SquareCB(gamma_scale=1e9)), seed=1).equals(one)


def test_a_generation_is_set_against_what_its_predecessor_would_be_worth(tmp_path: Path) -> None:
    rows = series(tmp_path, arm(exploration=SquareCB(gamma_scale=30.0, gamma_exponent=0.0)))
    assert rows["carried_value"][0] is None
    # Nothing changes in this town, so that it is what it was worth.
    assert rows["carried_value"].to_list()[1:] == rows["value"].to_list()[:-1]


def test_bootstraps_are_of_the_same_log(tmp_path: Path) -> None:
    plain = arm(exploration=Softmax(temperature=0.1))
    rows = series(tmp_path, Arm("arm", plain.config, bootstraps=4))
    assert rows["bootstrapped"][0] is None
    assert rows.drop("bootstrapped").equals(series(tmp_path, plain).drop("bootstrapped"))
    for value, drawn in rows.tail(3).select("value", "bootstrapped").iter_rows():
        assert len(set(drawn)) == 4
        # Estimates are off by some .05 with 240 rows, which is half of the temperature.
        assert drawn == pytest.approx([value] * 4, abs=0.25)


def test_a_gate_lets_only_those_through_that_are_shown_to_be_better(tmp_path: Path) -> None:
    better = arm(exploration=SquareCB(gamma_scale=1e6))
    rows = series(tmp_path, Arm("gated", better.config, gated=True))
    assert rows["value"][1] == pytest.approx(0.85, abs=1e-3)
    # The best can't be beaten, and stays.
    assert rows["total_variation"].to_list()[2:] == [0.0, 0.0]
    same = arm(exploration=Uniform())
    rows = series(tmp_path, Arm("gated", same.config, gated=True))
    assert rows["step"].to_list() == [None] * 4
    assert rows["learned_rows"].to_list()[1:] == sorted(rows["learned_rows"].to_list()[1:])


def test_the_memory_is_in_the_series(tmp_path: Path) -> None:
    adaptive = TrainingConfig(memory="adaptive", holdout=0.0)
    rows = series(tmp_path, arm(exploration=Uniform(), training=adaptive))
    # Too few rows are known at first to measure anything.
    assert rows["kept"].to_list()[:3] == [None, None, None]
    assert 0.01 <= rows["kept"][3] <= 1.0
    assert rows["step"].to_list() == [None, 1.0, 1.0, 1.0]


def test_a_uniform_slice_is_in_the_propensities(tmp_path: Path) -> None:
    sliced = arm(exploration=Greedy(), uniform_slices=(UniformSlice(share=0.3),))
    rows = series(tmp_path, sliced)
    assert rows["min_propensity"].to_list()[1:] == pytest.approx([0.1] * 3)
    # And in the value: three in ten requests are answered by chance.
    assert rows["value"][1] == pytest.approx(0.7 * 0.85 + 0.3 * CHANCES.mean())
    lake = Lake(next(each for each in tmp_path.iterdir()))
    mixed = lake.scan("interactions", "study").select(pl.col("mix").list.len().max())
    assert mixed.collect().item() == 2


def test_arms_differ_by_what_their_names_say() -> None:
    arms = {each.name: each for each in oscillation_arms(LoopConfig(oracle=ORACLES["logistic"]))}
    plain = arms[PLAIN].config
    assert arms[UNIFORM].config.exploration == Uniform()
    assert plain.training.window_generations == 1
    assert arms[f"{PLAIN}, W = 3"].config == msgspec.structs.replace(
        plain, training=msgspec.structs.replace(plain.training, window_generations=3)
    )
    assert [each for each in arms if arms[each].logs_uniformly] == [f"{PLAIN}, uniform log"]
    assert [each for each in arms if arms[each].gated] == [f"{PLAIN}, gate"]
    told = {(config_digest(each.config), each.logs_uniformly, each.gated) for each in arms.values()}
    assert len(told) == len(arms)
    # One that corrects for propensities by itself has other kinds of doing so.
    weighing = oscillation_arms(LoopConfig(oracle=ORACLES["vowpal_wabbit"]))
    assert {each.name for each in weighing} ^ arms.keys() == {f"{PLAIN}, mtr", f"{PLAIN}, dr"}
