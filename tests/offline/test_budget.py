"""The safety budget out of the log, and what it does for a loop over its nights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from croupier.offline.budget import decision_budget, safety_budget
from croupier.offline.lake import Lake
from croupier.offline.retrain import is_judged, retrain
from croupier.policy.events import Action
from croupier.policy.exploration import Conservative, EpsilonGreedy, Exploration, SquareCB, Uniform
from croupier.policy.generation import Generation, cold_start
from croupier.policy.loop import LoopConfig
from croupier.policy.oracle import SklearnConfig, SklearnOracle, TrainingRow
from tests.offline.logs import EPOCH_US
from tests.offline.worlds import World

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from croupier.policy.oracle import Oracle

NIGHTS, DAY = 8, 300
ALPHA = 0.1
INNER = SquareCB(gamma_scale=3.0)


def good_baseline() -> World:
    """The first action, which is the baseline, is good; one other is a little better in places."""
    rewards = np.full((3, 5), 0.1)
    rewards[:, 0] = 0.7
    rewards[0, 2] = 0.75
    return World(rewards)


@dataclass(frozen=True)
class Life:
    """A loop's nights: what was expected of each day, as a share of the baseline's rewards."""

    values: NDArray[np.float64]
    budgets: list[float]

    @property
    def running(self) -> NDArray[np.float64]:
        """Cumulative share after every day."""
        return np.cumsum(self.values) / np.arange(1, self.values.size + 1)


def live(directory: Path, exploration: Exploration, seed: int) -> Life:
    """Serve every night's generation the day after, ungated: the exploration is all that guards."""
    world, lake = good_baseline(), Lake(directory)
    config = LoopConfig(exploration=exploration, oracle=SklearnConfig())
    served = cold_start("shop", exploration)
    values, budgets = [], []
    for night in range(NIGHTS):
        values.append(value(world, served) / float(world.rewards[:, 0].mean()))
        lake.append("interactions", world.log(served, DAY, 100 * seed + night, first=night * DAY))
        served = retrain(
            lake,
            "shop",
            config,
            number=night + 1,
            parent=served.number,
            judge_share=0.3,
            seed=0,
            created_us=EPOCH_US,
        )
        assert served.provenance is not None
        budgets.append(served.provenance.budget)
    return Life(np.array(values), budgets)


def value(world: World, generation: Generation) -> float:
    """Exact mean reward of a policy that knows the baseline."""
    asked = [world.request(context) for context in range(len(world.rewards))]
    pmfs = [generation.pmf(each.context, each.actions, None, 0)[0] for each in asked]
    return float(np.mean([pmf @ row for pmf, row in zip(pmfs, world.rewards, strict=True)]))


@pytest.mark.parametrize("seed", range(4))
def test_a_conservative_loop_keeps_its_promise_where_plain_exploration_does_not(
    tmp_path: Path, seed: int
) -> None:
    """Every running mean of expected rewards is at least (1 - alpha) of the baseline's."""
    guarded = live(tmp_path / "guarded", Conservative(inner=INNER, alpha=ALPHA), seed)
    plain = live(tmp_path / "plain", INNER, seed)
    assert (guarded.running >= 1.0 - ALPHA).all()
    assert (plain.running < 1.0 - ALPHA).all()
    assert plain.budgets == [0.0] * NIGHTS
    # At first too little was saved to rely on the oracle; later there is something to spend.
    assert guarded.budgets[0] < 0.0 < guarded.budgets[-1]
    assert guarded.values[0] == pytest.approx(1 - ALPHA + ALPHA * mean_share(), abs=1e-9)


def mean_share() -> float:
    rewards = good_baseline().rewards
    return float(rewards.mean() / rewards[:, 0].mean())


# Added up by hand.


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    """Believes the truth."""
    rewards = good_baseline().rewards.tolist()
    rows = [
        TrainingRow(
            context={"x": f"x{context}"},
            actions=[Action(f"a{each}") for each in range(len(row))],
            chosen=action,
            propensity=1.0,
            reward=reward,
        )
        for context, row in enumerate(rewards)
        for action, reward in enumerate(row)
    ]
    return SklearnOracle(SklearnConfig(params={"alpha": 1e-6})).fit(rows)


CONFIG = LoopConfig(exploration=Conservative(inner=INNER, alpha=ALPHA), oracle=SklearnConfig())


def test_the_sums_are_predicted_values_of_logged_pmfs(oracle: Oracle) -> None:
    world = good_baseline()
    log = world.log(cold_start("shop", CONFIG.exploration), 200, seed=1)
    contexts = [int(each[-3]) for each in log["context"]]
    rewards = world.rewards[contexts]
    played = (np.array(log["pmf"].to_list()) * rewards).sum(axis=1)
    expected = float((played - (1 - ALPHA) * rewards[:, 0]).sum())
    budget = safety_budget(log, oracle, CONFIG)
    assert budget.saved == pytest.approx(expected, abs=1e-3)
    assert (budget.explorations, budget.slack, budget.alpha) == (200, 1.0, ALPHA)
    assert decision_budget(log, oracle, CONFIG) == pytest.approx(budget.available / 200)


def test_the_baseline_s_days_save_alpha_of_what_they_earn(oracle: Oracle) -> None:
    world = good_baseline()
    log = world.log(cold_start("shop"), 50, seed=1).with_columns(
        pmf=pl.lit([1.0, 0.0, 0.0, 0.0, 0.0]), chosen=pl.lit(0), propensity=pl.lit(1.0)
    )
    budget = safety_budget(log, oracle, CONFIG)
    assert budget.explorations == 0
    assert budget.saved == pytest.approx(50 * ALPHA * 0.7, abs=1e-3)
    assert decision_budget(log, oracle, CONFIG) == pytest.approx(ALPHA * 0.7, abs=1e-4)


def test_what_says_nothing_of_the_baseline_doesn_t_count(oracle: Oracle) -> None:
    log = good_baseline().log(cold_start("shop"), 50, seed=1)
    for blank in ("pmf", "baseline"):
        unknown = log.with_columns(pl.lit(None, dtype=log.schema[blank]).alias(blank))
        budget = safety_budget(unknown, oracle, CONFIG)
        assert (budget.saved, budget.explorations) == (0.0, 0)


def test_it_is_shared_out_among_a_day_s_decisions_or_a_generation_s(oracle: Oracle) -> None:
    world = good_baseline()
    played = pl.lit([1.0, 0.0, 0.0, 0.0, 0.0])
    before = world.log(world.generation(1, Uniform()), 30, seed=1).with_columns(pmf=played)
    day = pl.duration(days=2)
    after = world.log(world.generation(2, Uniform()), 10, seed=2, first=30).with_columns(
        pl.col("ts") + day, pmf=played
    )
    saved = 40 * ALPHA * 0.7
    # The last day saw 10 decisions, all by the generation that served last.
    log = pl.concat([before, after])
    assert decision_budget(log, oracle, CONFIG) == pytest.approx(saved / 10, rel=1e-3)
    # If it served before too, it may well serve as long again.
    longer = log.with_columns(generation=pl.lit(2, dtype=pl.Int64))
    assert decision_budget(longer, oracle, CONFIG) == pytest.approx(saved / 40, rel=1e-3)


@pytest.mark.parametrize("exploration", [EpsilonGreedy(), Uniform(), INNER], ids=str)
def test_others_have_no_use_for_one(oracle: Oracle, exploration: Exploration) -> None:
    log = good_baseline().log(cold_start("shop"), 50, seed=1)
    config = LoopConfig(exploration=exploration, oracle=SklearnConfig())
    assert decision_budget(log, oracle, config) == 0.0


def test_judge_s_rows_are_not_counted(tmp_path: Path) -> None:
    """What the judge sees must not change what is judged."""
    lake, world = Lake(tmp_path), good_baseline()
    log = world.log(cold_start("shop", CONFIG.exploration), 400, seed=3)
    lake.append("interactions", log)
    made = retrain(
        lake, "shop", CONFIG, number=1, parent=0, judge_share=0.3, seed=0, created_us=EPOCH_US
    )
    learned = log.filter(~is_judged(0.3))
    assert made.provenance is not None
    assert isinstance(made.oracle, SklearnOracle)
    assert made.provenance.budget == decision_budget(learned, made.oracle, CONFIG)
