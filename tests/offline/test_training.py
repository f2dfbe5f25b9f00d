"""A loop's training: what is held out, how far back is learned, and where learning starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl
import pytest

from croupier.offline.calibrate import asked, measure
from croupier.offline.interactions import training_rows
from croupier.offline.lake import Lake
from croupier.offline.retrain import is_judged, learner_folds, retrain, unseen_by
from croupier.policy.calibration import IsotonicCurve, PlattCurve, PriorCorrection
from croupier.policy.encoding import EncoderConfig
from croupier.policy.errors import NotEnoughDataError
from croupier.policy.events import Action
from croupier.policy.exploration import EpsilonGreedy
from croupier.policy.generation import Generation, cold_start
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import (
    AutoConfig,
    AutoOracle,
    Became,
    CoverConfig,
    EncodedOracle,
    RidgeConfig,
    SklearnConfig,
    SklearnOnnxConfig,
    VowpalWabbitConfig,
    VowpalWabbitModelConfig,
    make_oracle,
)
from croupier.policy.training import TrainingConfig
from tests.offline.logs import EPOCH_US
from tests.offline.worlds import World, random_world

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.policy.oracle import OracleConfig

ENCODER = EncoderConfig(bits=10)
WORLD = random_world(3, 4, seed=1)
ACTIONS = [Action(f"a{number}") for number in range(4)]
LINEAR = SklearnConfig(params={"alpha": 1e-3}, encoder=ENCODER)
DAY = 86_400_000_000


@pytest.fixture(scope="module")
def history() -> pl.DataFrame:
    """1,500 decisions, 1,000 or more of which are the learner's."""
    return WORLD.log(cold_start("shop"), 1500, seed=1)


def config(oracle: OracleConfig = LINEAR, **training: Any) -> LoopConfig:
    return LoopConfig(
        exploration=EpsilonGreedy(epsilon=0.1), oracle=oracle, training=TrainingConfig(**training)
    )


def train(
    lake: Lake,
    loop: LoopConfig,
    *,
    number: int = 1,
    champion: Generation | None = None,
    **more: Any,
) -> Generation:
    given: dict[str, Any] = {"judge_share": 0.3, "seed": 7, "created_us": EPOCH_US} | more
    parent = 0 if champion is None else champion.number
    return retrain(lake, "shop", loop, number=number, parent=parent, champion=champion, **given)


def scores(generation: Generation) -> list[list[float]]:
    assert generation.oracle is not None
    return [generation.oracle.score({"x": f"x{c}"}, ACTIONS).tolist() for c in range(3)]


def by_hand(loop: LoopConfig, rows: pl.DataFrame) -> EncodedOracle:
    return make_oracle(loop.oracle, random_state=7).fit(list(training_rows(rows)))


class TestHeldOut:
    def test_folds_are_shared_out_without_overlap(self) -> None:
        folds = learner_folds(TrainingConfig(calibration="platt"), 0.3, rows=1000)
        assert (folds.measured, folds.calibrated, folds.trained) == (300, 370, 510)
        few = learner_folds(TrainingConfig(calibration="platt"), 0.3, rows=999)
        assert (few.measured, few.calibrated, few.trained) == (300, 300, 440)
        plain = learner_folds(TrainingConfig(), 0.3, rows=10**6)
        assert (plain.measured, plain.calibrated, plain.trained) == (300, 370, 370)

    def test_rows_that_measure_teach_nothing(self, tmp_path: Path, history: pl.DataFrame) -> None:
        """Their rewards, and the judge's, are the opposite in a second lake."""
        for name, rows in (
            ("clean", history),
            (
                "poisoned",
                history.with_columns(
                    reward=pl.when(pl.col("fold") < 370)
                    .then(1.0 - pl.col("reward"))
                    .otherwise("reward")
                ),
            ),
        ):
            Lake(tmp_path / name).append("interactions", rows)
        loop = config(calibration="isotonic", weighting="ips")
        clean, poisoned = (train(Lake(tmp_path / n), loop) for n in ("clean", "poisoned"))
        assert scores(clean) == scores(poisoned)
        assert clean.provenance is not None
        assert clean.provenance.learned_folds == (370, 999)
        assert clean.provenance.training_rows == len(history.filter(pl.col("fold") >= 510))

    def test_small_logs_are_learned_from_whole(self, tmp_path: Path, history: pl.DataFrame) -> None:
        lake = Lake(tmp_path)
        lake.append("interactions", history[:500])
        made = train(lake, config())
        assert made.provenance is not None
        assert made.provenance.learned_folds == (300, 999)

    def test_a_generation_is_not_judged_by_what_it_learned(
        self, tmp_path: Path, history: pl.DataFrame
    ) -> None:
        """The judge's share was raised since: the rows it gained are left out for this one."""
        lake = Lake(tmp_path)
        lake.append("interactions", history[:500])
        made = train(lake, config(), judge_share=0.2)
        judged = history.filter(is_judged(0.4), unseen_by(made))
        assert not (judged["fold"] >= 200).any()
        assert len(judged) == len(history.filter(pl.col("fold") < 200))
        assert len(history.filter(is_judged(0.4), unseen_by(cold_start("shop")))) == len(
            history.filter(pl.col("fold") < 400)
        )


class TestCalibration:
    @pytest.mark.parametrize(
        ("kind", "curve"), [("isotonic", IsotonicCurve), ("platt", PlattCurve)]
    )
    def test_makes_a_tilted_oracle_s_estimates_rewards(
        self, tmp_path: Path, kind: str, curve: type
    ) -> None:
        """Trajectory weights double the estimates; the judge's rows tell, as nothing saw them.

        The expected calibration error of some 1,000 rows in 15 bins is about 0.05 by chance.
        """
        world = World(np.array([[0.05, 0.2, 0.4], [0.4, 0.1, 0.3]]))
        log = world.log(cold_start("shop"), 4000, seed=2)
        lake = Lake(tmp_path)
        lake.append("interactions", log)
        judged = list(training_rows(log.filter(is_judged(0.3))))
        tilted = train(lake, config(weighting="trajectory", temperature=0.5))
        loop = config(weighting="trajectory", temperature=0.5, calibration=kind)
        made = train(lake, loop)
        raw, oracle = tilted.oracle, made.oracle
        assert isinstance(raw, EncodedOracle)
        assert isinstance(oracle, EncodedOracle)
        assert [type(step) for step in oracle.calibration_] == [curve]
        before, after = (measure(asked(each, judged)) for each in (raw, oracle))
        assert before["ece"] > 0.15
        assert after["ece"] < 0.08
        made.save(tmp_path / "generation")
        assert scores(Generation.load(tmp_path / "generation")) == scores(made)

    @pytest.mark.parametrize(
        "oracle",
        [
            LINEAR,
            SklearnConfig(
                estimator="sklearn.linear_model.LogisticRegression",
                params={"C": 1e4},
                encoder=ENCODER,
            ),
            SklearnOnnxConfig(estimator="sklearn.tree.DecisionTreeClassifier", encoder=ENCODER),
        ],
        ids=["regression", "logistic", "tree"],
    )
    def test_class_weights_are_corrected_for(self, tmp_path: Path, oracle: OracleConfig) -> None:
        """Saturated models: the corrected estimates are the plain ones, whatever rows weighed.

        Rewards are rare (4 %), and those of 1 count 24 times as much.
        """
        world = World(np.array([[0.02, 0.06], [0.05, 0.03]]))
        log = world.log(cold_start("shop"), 3000, seed=2)
        lake = Lake(tmp_path)
        lake.append("interactions", log)
        plain = train(lake, config(oracle))
        balanced = train(lake, config(oracle, class_weight="balanced"))
        assert isinstance(balanced.oracle, EncodedOracle)
        (step,) = balanced.oracle.calibration_
        assert isinstance(step, PriorCorrection)
        assert step.ratio > 15.0
        asked_of: list[tuple[dict[str, Any], list[Action]]] = [
            ({"x": f"x{context}"}, ACTIONS[:2]) for context in range(2)
        ]
        assert plain.oracle is not None
        expected, corrected = (
            np.array([each.score(*request) for request in asked_of])
            for each in (plain.oracle, balanced.oracle)
        )
        np.testing.assert_allclose(corrected, expected, atol=2e-3)
        balanced.oracle.calibration_ = ()
        raw = np.array([balanced.oracle.score(*request) for request in asked_of])
        assert raw.mean() > 0.3

    @pytest.mark.parametrize(
        ("loop", "message"),
        [
            ({"exploration": {"kind": "thompson"}, "oracle": {"kind": "ridge"}}, "covariance|dev"),
            ({"reward_max": 2.0}, r"rewards within \[0, 1\]"),
            ({"learning_mode": "apprentice"}, "an apprentice learns no rewards"),
        ],
        ids=str,
    )
    def test_is_refused_where_it_means_nothing(self, loop: dict[str, Any], message: str) -> None:
        table = {"training": {"calibration": "platt"}, **loop}
        with pytest.raises(msgspec.ValidationError, match=message):
            msgspec.convert(table, LoopConfig)


class TestWindow:
    def test_in_days_counts_from_the_latest_interaction(
        self, tmp_path: Path, history: pl.DataFrame
    ) -> None:
        lake = Lake(tmp_path)
        lake.append("interactions", history)
        made = train(lake, config(window="5 min"))
        latest = history.filter(pl.col("fold") >= 300)["ts"].max()
        recent = history.filter(
            pl.col("ts") > latest - pl.duration(minutes=5), pl.col("fold") >= 300
        )
        assert 100 < len(recent) < 300
        assert made.provenance is not None
        assert made.provenance.training_rows == len(recent)
        earliest = recent["ts"].dt.epoch("us").min()
        assert made.provenance.learned_from_us == earliest
        hand = by_hand(config(), recent)
        assert scores(made) == [hand.score({"x": f"x{c}"}, ACTIONS).tolist() for c in range(3)]

    def test_in_generations_counts_those_that_served(
        self, tmp_path: Path, history: pl.DataFrame
    ) -> None:
        """Generations 3 and 7 are the latest two: those in between never served."""
        number = pl.int_range(pl.len())
        served = history[:900].with_columns(
            generation=pl.when(number < 300)
            .then(1)
            .when(number < 600)
            .then(3)
            .otherwise(7)
            .cast(pl.Int64)
        )
        lake = Lake(tmp_path)
        lake.append("interactions", served)
        made = train(lake, config(window_generations=2))
        recent = served.filter(pl.col("generation") >= 3, pl.col("fold") >= 300)
        assert made.provenance is not None
        assert made.provenance.training_rows == len(recent)

    @pytest.mark.parametrize(
        ("training", "message"),
        [
            ({"window": "0 s"}, r"training\.window must be positive"),
            ({"window": "soon"}, r"training\.window: a duration"),
            ({"window_generations": 0}, "window_generations must be at least 1"),
            ({"window": "1 d", "start": "champion"}, "can't be forgotten"),
            ({"largest_weight": 0.5}, "largest_weight must be at least 1"),
            ({"temperature": 0.0}, "temperature must be at least"),
            ({"calibration_share": 0.6}, r"calibration_share must be in \(0, 0\.5\]"),
            ({"holdout": -0.1}, r"holdout must be in \[0, 0\.5\]"),
            ({"weighting": "often"}, "weighting"),
            ({"windows": 1}, "windows"),
        ],
        ids=str,
    )
    def test_configuration_names_what_is_wrong(
        self, training: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(msgspec.ValidationError, match=message):
            msgspec.convert({"training": training}, LoopConfig)


class TestStart:
    @pytest.mark.parametrize(
        "oracle",
        [
            VowpalWabbitConfig(encoder=ENCODER),
            CoverConfig(members=2, encoder=ENCODER),
            RidgeConfig(encoder=ENCODER),
            AutoConfig(encoder=ENCODER),
            AutoConfig(encoder=ENCODER, max_columns=12),
            VowpalWabbitModelConfig(arguments="--lrq ca3 --power_t 0.3", encoder=ENCODER),
        ],
        ids=["vowpal_wabbit", "cover", "ridge", "auto", "auto, beyond", "vowpal_wabbit_model"],
    )
    def test_from_the_champion_is_continued_training(
        self, tmp_path: Path, history: pl.DataFrame, oracle: OracleConfig
    ) -> None:
        """Two nights that each teach what is new are one that teaches all of it."""
        loop = config(oracle, start="champion", holdout=0.0)
        lake, whole = Lake(tmp_path / "lake"), Lake(tmp_path / "whole")
        lake.append("interactions", history[:800])
        first = train(lake, loop)
        assert first.provenance is not None
        assert first.provenance.started_from is None
        first.save(tmp_path / "first")
        lake.append("interactions", history[800:])
        champion = Generation.load(tmp_path / "first", to_learn=True)
        second = train(lake, loop, number=2, champion=champion)
        assert second.provenance is not None
        assert second.provenance.started_from == 1
        whole.append("interactions", history)
        once = train(whole, loop)
        assert once.provenance is not None
        assert second.provenance.training_rows == once.provenance.training_rows
        np.testing.assert_allclose(scores(second), scores(once), rtol=1e-9)

    def test_from_one_that_learned_all_of_it_is_nothing_to_learn(
        self, tmp_path: Path, history: pl.DataFrame
    ) -> None:
        loop = config(VowpalWabbitConfig(encoder=ENCODER), start="champion")
        lake = Lake(tmp_path)
        lake.append("interactions", history)
        first = train(lake, loop)
        with pytest.raises(NotEnoughDataError, match="nothing to learn that generation 1 hasn't"):
            train(lake, loop, number=2, champion=first)

    @pytest.mark.parametrize(
        ("change", "more"),
        [
            ({"oracle": VowpalWabbitConfig(learning_rate=0.3, encoder=ENCODER)}, {}),
            ({}, {"judge_share": 0.4}),
            ({"start": "fresh"}, {}),
            ({"oracle": LINEAR}, {}),
            ({"learn_from_slices": False}, {}),
        ],
        ids=["another oracle", "other folds", "fresh", "can't learn on", "other slices"],
    )
    def test_is_fresh_where_learning_can_not_go_on(
        self, tmp_path: Path, history: pl.DataFrame, change: dict[str, Any], more: dict[str, Any]
    ) -> None:
        start: dict[str, Any] = {
            "oracle": VowpalWabbitConfig(encoder=ENCODER),
            "start": "champion",
        }
        lake = Lake(tmp_path)
        lake.append("interactions", history[:800])
        kind = LINEAR if change.get("oracle") == LINEAR else start["oracle"]
        first = train(lake, config(**(start | {"oracle": kind})))
        lake.append("interactions", history[800:])
        changed = config(**(start | change))
        second = train(lake, changed, number=2, champion=first, **more)
        assert second.provenance is not None
        assert second.provenance.started_from is None
        assert scores(second) == scores(train(lake, changed, **more))

    def test_is_fresh_where_there_is_no_room_for_what_is_new(
        self, tmp_path: Path, history: pl.DataFrame
    ) -> None:
        """A small ridge regression is the champion; with further contexts it is none any more."""
        loop = config(AutoConfig(encoder=ENCODER, max_columns=20), start="champion", holdout=0.0)
        lake = Lake(tmp_path)
        known = pl.col("context").str.contains('"x0"')
        lake.append("interactions", history.filter(known))
        first = train(lake, loop)
        assert isinstance(first.oracle, AutoOracle)
        assert first.oracle.became_ == Became(kind="ridge", columns=14)
        lake.append("interactions", history.filter(~known))
        second = train(lake, loop, number=2, champion=first)
        assert second.provenance is not None
        assert second.provenance.started_from is None
        assert isinstance(second.oracle, AutoOracle)
        assert second.oracle.became_ == Became(kind="vowpal_wabbit")
        assert scores(second) == scores(train(lake, loop))
        assert first.oracle.became_.kind == "ridge"

    def test_calibrates_anew(self, tmp_path: Path, history: pl.DataFrame) -> None:
        loop = config(VowpalWabbitConfig(encoder=ENCODER), start="champion", calibration="isotonic")
        lake = Lake(tmp_path)
        lake.append("interactions", history[:1450])
        first = train(lake, loop)
        lake.append("interactions", history[1450:])
        second = train(lake, loop, number=2, champion=first)
        assert second.provenance is not None
        assert second.provenance.started_from == 1
        assert isinstance(second.oracle, EncodedOracle)
        assert len(second.oracle.calibration_) == 1


class TestSlices:
    def test_reserved_slices_judge_and_never_train(self, tmp_path: Path) -> None:
        """Within the slice the rewards are the opposite: nothing of that is learned."""
        calm = WORLD.log(cold_start("shop"), 400, seed=1)
        slice_ = WORLD.log(cold_start("shop"), 400, seed=2, first=400, uniform=0.2)
        log = pl.concat([calm, slice_.with_columns(reward=1.0 - pl.col("reward"))])
        lake, without = Lake(tmp_path / "lake"), Lake(tmp_path / "without")
        lake.append("interactions", log)
        without.append("interactions", calm)
        loop = config(learn_from_slices=False)
        made = train(lake, loop)
        assert scores(made) == scores(train(without, loop))
        assert scores(made) != scores(train(lake, config()))
        judged = log.filter(is_judged(0.3, loop.training))
        assert len(judged) == 400 + int((calm["fold"] < 300).sum())
        assert len(judged.filter(unseen_by(made))) == len(judged)
        learned = log.filter(~is_judged(0.3, loop.training))
        assert not (learned["fold"] < 300).any()
        # One that was trained when slices taught may have learned from those of the learner.
        careless = train(lake, config())
        assert len(judged.filter(unseen_by(careless))) == int((log["fold"] < 300).sum())
