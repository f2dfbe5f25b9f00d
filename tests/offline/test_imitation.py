"""Apprentices: they learn the baseline's rule, are judged by it, and go on with real rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import polars as pl
import pytest
from scipy import stats

from croupier.offline.imitation import (
    imitation_lessons,
    judge_imitation,
    match_rate,
    served_match_rate,
)
from croupier.offline.lake import Lake
from croupier.offline.retrain import retrain
from croupier.policy.decision import DecisionRequest, eligibility
from croupier.policy.errors import NotEnoughDataError
from croupier.policy.exploration import Conservative, Greedy, SquareCB
from croupier.policy.generation import Generation, cold_start
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import OracleConfig, SklearnConfig, VowpalWabbitConfig
from tests.offline.logs import EPOCH_US
from tests.offline.shop import CONFIG, Shop
from tests.offline.worlds import World, random_world

if TYPE_CHECKING:
    from pathlib import Path

# Of MLflow's own making.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")

RULE = (2, 0, 3, 1)
APPRENTICE = msgspec.structs.replace(CONFIG, learning_mode="apprentice")


@dataclass(frozen=True, eq=False)
class Ruled(World):
    """A world whose application follows a rule of its own: an action for every context."""

    rule: tuple[int, ...] = ()

    def request(self, context: int, decision_id: str | None = None) -> DecisionRequest:
        asked = super().request(context, decision_id)
        return msgspec.structs.replace(asked, baseline=f"a{self.rule[context]}")


@pytest.fixture(scope="module")
def world() -> Ruled:
    rewards = random_world(4, 4, seed=2).rewards
    return Ruled(rewards, excluded=(None, 1, None, None), rule=RULE)


@pytest.fixture(scope="module")
def log(world: Ruled) -> pl.DataFrame:
    return world.log(cold_start("shop"), 600, seed=1)


def imitator(world: Ruled, number: int, rule: tuple[int, ...]) -> Generation:
    """Follows a rule without fail."""
    believed = np.eye(world.rewards.shape[1])[list(rule)]
    return world.generation(number, Greedy(), believed)


# From the first night to the first day online.


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, world: Ruled) -> Shop:
    """Three days and nights of an apprentice."""
    shop = Shop(tmp_path_factory.mktemp("apprentice"), world, loops={"shop": APPRENTICE})
    for _ in range(3):
        shop.day(300)
        (night,) = shop.night().loops
        assert (night.failed, night.skipped, night.evaluation) == (None, None, None)
    return shop


def test_an_apprentice_learns_the_rule(shop: Shop, world: Ruled) -> None:
    rows = shop.rows()
    champion = shop.registry.champion("shop")
    assert champion == 1
    assert rows[1]["status"] == "champion"
    assert rows[1]["match_rate"] == 1.0
    assert 0.9 < rows[1]["match_lower"] < 1.0 == rows[1]["match_upper"]
    assert rows[1]["judged_rows"] > 50
    assert (rows[1]["estimate"], rows[1]["difference"]) == (None, None)
    assert "p-value" in rows[1]["verdict"]
    # Later ones match no better than perfectly.
    assert [rows[number]["status"] for number in (2, 3)] == ["rejected"] * 2
    learned = shop.nightly.generation("shop", champion)
    for context, action in enumerate(RULE):
        request = world.request(context)
        pmf, _ = learned.pmf(request.context, request.actions, eligibility(request))
        assert pmf.argmax() == action


def test_the_baseline_is_played_all_along(shop: Shop) -> None:
    decisions = shop.lake.scan("decisions").collect()
    assert (decisions["chosen"] == decisions["baseline"]).all()
    assert (decisions["propensity"] == 1.0).all()


def test_the_night_tells_how_the_served_ones_matched(shop: Shop) -> None:
    """The first day's shadow was the cold start's, the later days' follow the rule."""
    served = served_match_rate(shop.lake.scan("interactions").collect())
    assert served is not None
    assert served.rows == 900
    decisions = shop.lake.scan("decisions").sort("offset").collect()
    by_day = [served_match_rate(decisions.slice(300 * day, 300)) for day in range(3)]
    values = [0.0 if each is None else each.value for each in by_day]
    # 1/4 of four actions that tie, 1/3 where one of them is excluded.
    assert 0.25 <= values[0] <= 0.34
    assert values[1:] == [1.0, 1.0]
    assert served.value == pytest.approx(np.mean(values))


def test_after_the_apprenticeship_the_champion_serves_and_real_rewards_teach(
    shop: Shop, world: Ruled
) -> None:
    shop.nightly.loops = shop.scorer.loops = {"shop": CONFIG}
    shop.day(400)
    (night,) = shop.night().loops
    drawn = shop.lake.scan("decisions").filter(pl.col("learning_mode") == "online").collect()
    assert drawn["generation"].unique().to_list() == [1]
    assert (drawn["chosen"] == drawn["baseline"]).sum() > 0.7 * len(drawn)
    assert night.imitation is None
    assert night.evaluation is not None
    # What the new oracle believes are rewards, which the baseline's choice is not.
    learner = shop.nightly.generation("shop", 4)
    for context, action in enumerate(RULE):
        request = world.request(context)
        assert learner.oracle is not None
        believed = learner.oracle.score(request.context, request.actions)[action]
        # Of some 180 rewards in every context: 5 standard errors, a false-alarm rate of 2e-6.
        assert abs(believed - world.rewards[context, action]) < 5 * 0.5 / np.sqrt(180)


# What is learned from.


def test_lessons_are_full_information(log: pl.DataFrame) -> None:
    lessons = list(imitation_lessons(log))
    assert len(lessons) == len(log)
    for (right, wrong), row in zip(lessons, log.iter_rows(named=True), strict=True):
        eligible = len(row["action_ids"]) - len(row["excluded"])
        assert right.chosen == row["baseline"] != wrong.chosen
        assert row["action_ids"][wrong.chosen] not in row["excluded"]
        assert (right.reward, wrong.reward) == (1.0, 0.0)
        assert (right.propensity, wrong.propensity) == (1.0, 1.0)
        assert (right.weight, wrong.weight) == (1.0, eligible - 1.0)
    assert lessons == list(imitation_lessons(log))
    # In whatever order, and beside whatever other rows.
    assert lessons[17:18] == list(imitation_lessons(log[17:18]))
    # Every other action has its turn: uniform by chi-square, with a false-alarm rate of 1e-3.
    free = [w.chosen for (_, w), x in zip(lessons, log["context"], strict=True) if "x0" in x]
    counts = np.bincount(free, minlength=4)[[0, 1, 3]]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_what_is_no_choice_teaches_nothing(log: pl.DataFrame) -> None:
    unknown = log.with_columns(baseline=pl.lit(None, dtype=pl.Int64))
    assert list(imitation_lessons(unknown)) == []
    single = log.filter(pl.col("context").str.contains("x0")).with_columns(
        excluded=pl.lit(["a0", "a1", "a3"])
    )
    assert len(single) > 100
    assert list(imitation_lessons(single)) == []


@pytest.mark.parametrize("oracle", [VowpalWabbitConfig(passes=3), SklearnConfig()], ids=str)
def test_every_kind_of_oracle_can_imitate(
    tmp_path: Path, log: pl.DataFrame, oracle: OracleConfig
) -> None:
    lake = Lake(tmp_path)
    lake.append("interactions", log)
    config = LoopConfig(exploration=SquareCB(), oracle=oracle, learning_mode="apprentice")
    learned = retrain(
        lake, "shop", config, number=1, parent=0, judge_share=0.3, seed=0, created_us=EPOCH_US
    )
    assert learned.provenance is not None
    assert learned.provenance.training_rows == len(log.filter(pl.col("fold") >= 300))
    judged = log.filter(pl.col("fold") < 300)
    imitation, verdict = judge_imitation(judged, cold_start("shop"), learned)
    assert imitation.challenger.value > 0.95
    assert verdict.promote


# How it is judged.


def test_wilson_s_interval() -> None:
    rate = match_rate(np.array([1.0] * 8 + [0.0] * 2), 0.95)
    # Wilson (1927) by the textbook: 0.490 to 0.943.
    assert (rate.rows, rate.value) == (10, 0.8)
    assert (rate.lower, rate.upper) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    whole = match_rate(np.ones(5), 0.95)
    assert (whole.value, whole.upper) == (1.0, 1.0)
    assert 0.0 < whole.lower < 1.0


def test_the_better_imitator_wins(world: Ruled, log: pl.DataFrame) -> None:
    good, bad = imitator(world, 2, RULE), imitator(world, 1, (2, 0, 3, 0))
    imitation, verdict = judge_imitation(log, bad, good)
    missed = log.filter(pl.col("context").str.contains("x3")).height / len(log)
    assert imitation.challenger.value == 1.0
    assert imitation.champion.value == pytest.approx(1.0 - missed)
    assert (imitation.wins, imitation.losses) == (round(missed * len(log)), 0)
    assert verdict.promote
    imitation, verdict = judge_imitation(log, good, bad)
    assert (imitation.wins, imitation.p_value) == (0, 1.0)
    assert not verdict.promote
    assert "≥" in verdict.reasons[0]


def test_ties_count_their_share(world: Ruled, log: pl.DataFrame) -> None:
    imitation, _ = judge_imitation(log, cold_start("shop"), cold_start("shop"))
    barred = log.filter(pl.col("context").str.contains("x1")).height / len(log)
    assert imitation.champion.value == pytest.approx((1 - barred) / 4 + barred / 3)
    assert (imitation.wins, imitation.losses) == (0, 0)
    # A rule that is right in two contexts of four beats chance, though it is wrong as often.
    half = imitator(world, 1, (2, 0, 0, 0))
    imitation, verdict = judge_imitation(log, cold_start("shop"), half)
    gain = imitation.challenger.value - imitation.champion.value
    assert (imitation.wins - imitation.losses) / len(log) == pytest.approx(gain, abs=0.1)
    assert verdict.promote


def test_equal_imitators_are_seldom_told_apart(world: Ruled) -> None:
    """Each is right in two contexts of four, so the exact test's false alarms are below 2.5 %.

    60 logs: more than 6 alarms have a probability below 4e-4.
    """
    one, two = imitator(world, 1, (2, 0, 0, 0)), imitator(world, 2, (0, 2, 3, 1))
    alarms = 0
    for seed in range(60):
        _, verdict = judge_imitation(world.log(cold_start("shop"), 80, seed), one, two)
        alarms += verdict.promote
    assert alarms <= 6


def test_a_conservative_one_is_judged_by_what_it_has_learned(
    world: Ruled, log: pl.DataFrame
) -> None:
    """Else it would match the baseline always, just by playing it."""
    exploration = Conservative(inner=SquareCB())
    cold = cold_start("shop", exploration)
    imitation, _ = judge_imitation(log, cold, imitator(world, 1, RULE))
    assert imitation.champion.value < 0.4
    assert imitation.challenger.value == 1.0


def test_too_few_decisions_judge_nobody(log: pl.DataFrame) -> None:
    with pytest.raises(NotEnoughDataError, match="at least 20 decisions"):
        judge_imitation(log[:19], cold_start("shop"), cold_start("shop"))
