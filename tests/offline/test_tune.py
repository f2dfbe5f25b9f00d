"""Searching on the log: what is better is found, and luck is not taken for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from croupier.offline.lake import Lake
from croupier.offline.tune import combinations, parse_grid, tune
from croupier.policy.encoding import EncoderConfig
from croupier.policy.errors import InvalidInputError, NotEnoughDataError
from croupier.policy.exploration import EpsilonGreedy, Softmax
from croupier.policy.generation import cold_start
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import SklearnConfig
from tests.offline.logs import EPOCH_US
from tests.offline.worlds import World

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.offline.tune import TuneReport

WORLD = World(np.array([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2]]))
FLAT = World(np.full((2, 3), 0.5))
CONFIG = LoopConfig(
    exploration=EpsilonGreedy(epsilon=1.0),
    oracle=SklearnConfig(params={"alpha": 1.0}, encoder=EncoderConfig(bits=10)),
)


def search(
    lake: Lake, grid: dict[str, list[Any]], config: LoopConfig = CONFIG, **more: Any
) -> TuneReport:
    given: dict[str, Any] = {"judge_share": 0.3, "seed": 0, "created_us": EPOCH_US} | more
    return tune(lake, "shop", config, grid, **given)


def filled(path: Path, world: World, count: int, seed: int = 1) -> tuple[Lake, pl.DataFrame]:
    lake, log = Lake(path), world.log(cold_start("shop"), count, seed=seed)
    lake.append("interactions", log)
    return lake, log


def test_finds_what_is_better_and_says_how_sure_it_is(tmp_path: Path) -> None:
    """The loop's own explores all the time and earns 0.35; the greedier, the better, up to 0.85."""
    lake, log = filled(tmp_path, WORLD, 1500)
    report = search(lake, {"exploration.epsilon": [0.9, 0.5, 0.1], "oracle.params": [{}]})
    assert report.compared == 3
    assert report.corrected_confidence == pytest.approx(1.0 - 0.05 / 3)
    assert "Bonferroni" in report.correction
    assert [trial.changes.get("exploration.epsilon") for trial in report.trials] == [
        None,
        0.1,
        0.5,
        0.9,
    ]
    assert report.better is not None
    assert report.better.changes["exploration.epsilon"] == 0.1
    first = report.trials[0].value
    assert first is not None
    assert first.lower < 1.1 / 3 < first.upper
    for trial in report.trials[1:]:
        assert trial.value is not None
        assert trial.difference is not None
        epsilon = trial.changes["exploration.epsilon"]
        true = epsilon * 1.1 / 3 + (1.0 - epsilon) * 0.85
        assert trial.value.lower < true < trial.value.upper
        assert trial.value.confidence == report.corrected_confidence
    # Neither part is the gate's, and they share no rows.
    learner = log.filter(pl.col("fold") >= 300)
    assert report.judged_rows == int((learner["fold"] < 510).sum())
    assert report.trained_rows <= len(learner) - report.judged_rows


def test_the_gate_s_rows_are_not_looked_at(tmp_path: Path) -> None:
    lake, log = filled(tmp_path / "a", WORLD, 600)
    other = Lake(tmp_path / "b")
    other.append(
        "interactions",
        log.with_columns(
            reward=pl.when(pl.col("fold") < 300).then(0.123).otherwise(pl.col("reward"))
        ),
    )
    grid = {"exploration.epsilon": [0.5]}
    assert search(lake, grid).trials == search(other, grid).trials


def test_luck_is_not_taken_for_merit(tmp_path: Path) -> None:
    """All policies earn the same, and six are tried on each of 20 logs.

    With intervals that all hold at once with 90 %, at most 2 of 20 are expected to find a "better"
    one; 7 or more would come by chance with a probability of 0.0024.
    """
    grid = {"exploration.epsilon": [0.15 * step for step in range(6)]}
    wrong = 0
    for seed in range(20):
        lake, _ = filled(tmp_path / str(seed), FLAT, 300, seed=seed)
        wrong += search(lake, grid, confidence=0.9).better is not None
    assert wrong < 7


def test_one_that_can_not_be_trained_does_not_end_the_search(tmp_path: Path) -> None:
    lake, _ = filled(tmp_path, WORLD, 600)
    grid = {"oracle.estimator": ["sklearn.linear_model.Lasso", "sklearn.linear_model.NoSuch"]}
    report = search(lake, {"oracle.params": [{}]} | grid)
    (failed,) = [trial for trial in report.trials if trial.failed is not None]
    assert failed.changes["oracle.estimator"] == "sklearn.linear_model.NoSuch"
    assert "NoSuch" in str(failed.failed)
    assert failed.value is None
    assert report.trials[-1] is failed


def test_there_must_be_a_log(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughDataError, match="no interactions yet"):
        search(Lake(tmp_path), {})


def test_grids_are_read_as_toml() -> None:
    assert parse_grid(["oracle.l2=[0, 0.1]", ' exploration = [{ kind = "softmax" }]']) == {
        "oracle.l2": [0, 0.1],
        "exploration": [{"kind": "softmax"}],
    }
    for text in ("oracle.l2", "oracle.l2=0.1", "oracle.l2=[]", "oracle.l2=[x]", "reward_max=[2.0]"):
        with pytest.raises(InvalidInputError, match="grid: expected"):
            parse_grid([text])


def test_combinations_are_configurations() -> None:
    found = combinations(
        CONFIG, {"exploration": [{"kind": "softmax"}], "training.weighting": ["none", "ips"]}
    )
    assert [changes for changes, _ in found[1:]] == [
        {"exploration": {"kind": "softmax"}, "training.weighting": weighting}
        for weighting in ("none", "ips")
    ]
    assert found[0] == ({}, CONFIG)
    assert found[2][1].exploration == Softmax()
    # The loop's own is no other one.
    assert len(combinations(CONFIG, {"exploration.epsilon": [1.0, 0.5]})) == 2
    with pytest.raises(InvalidInputError, match=r"exploration\.epsilon = 3.*epsilon"):
        combinations(CONFIG, {"exploration.epsilon": [3.0]})
    with pytest.raises(InvalidInputError, match=r"oracle\.estimator\.x is not a field"):
        combinations(CONFIG, {"oracle.estimator.x": [1]})
    with pytest.raises(InvalidInputError, match="at most 1000"):
        combinations(CONFIG, {"exploration.epsilon": [step / 2000 for step in range(1500)]})
