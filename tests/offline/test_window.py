"""What is learned from and judged on: the rows of the window, found without reading older ones."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from croupier.offline.delays import settled_interactions
from croupier.offline.folds import is_judged
from croupier.offline.interactions import current_interactions
from croupier.offline.lake import Lake
from croupier.offline.learner_log import LearnerLog
from croupier.offline.nightly import Nightly, NightlyConfig
from croupier.offline.registry import Registry
from croupier.offline.report import report_on
from croupier.offline.retrain import retrain
from croupier.policy.exploration import EpsilonGreedy
from croupier.policy.generation import Generation, cold_start
from croupier.policy.loop import LoopConfig, parse_duration
from croupier.policy.oracle import RidgeConfig, SklearnConfig
from croupier.policy.training import TrainingConfig
from tests.offline.logs import EPOCH_US
from tests.offline.worlds import random_world

if TYPE_CHECKING:
    from pathlib import Path

    from croupier.policy.oracle import OracleConfig

# Of MLflow's own making.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")

DAYS, A_DAY = 10, 150
WORLD = random_world(3, 3, seed=1)


@pytest.fixture(scope="module")
def history() -> list[pl.DataFrame]:
    """A day's interactions each; the number of the generation is that of the day, halved."""
    log = WORLD.log(cold_start("shop"), DAYS * A_DAY, seed=1)
    return [
        at(log[day * A_DAY : (day + 1) * A_DAY], day).with_columns(
            generation=pl.lit(day // 2, dtype=pl.Int64)
        )
        for day in range(DAYS)
    ]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def at(rows: pl.DataFrame, day: int) -> pl.DataFrame:
    moments = pl.col("ts") + timedelta(days=day)
    return rows.with_columns(ts=moments, date=moments.dt.date())


def revised(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(revision=pl.lit(1, dtype=pl.Int64), reward=pl.lit(0.5))


def config(oracle: OracleConfig | None = None, **training: Any) -> LoopConfig:
    return LoopConfig(
        exploration=EpsilonGreedy(epsilon=0.1),
        oracle=oracle or SklearnConfig(),
        training=TrainingConfig(**training),
    )


def train(lake: Lake, loop: LoopConfig, champion: Generation | None = None) -> Generation:
    return retrain(
        lake,
        "shop",
        loop,
        number=1 if champion is None else champion.number + 1,
        parent=0 if champion is None else champion.number,
        judge_share=0.3,
        seed=7,
        created_us=EPOCH_US,
        champion=champion,
    )


def scores(generation: Generation) -> list[list[float]]:
    assert generation.oracle is not None
    actions = WORLD.request(0).actions
    return [generation.oracle.score({"x": f"x{c}"}, actions).tolist() for c in range(3)]


def spoil(lake: Lake, before: int) -> None:
    """Make the interactions of the days before one unreadable."""
    days = sorted((lake.root / "interactions" / "loop=shop").iterdir())
    assert len(days) == DAYS
    for path in (each for day in days[:before] for each in day.iterdir()):
        path.write_bytes(b"nothing that can be read")


def by_definition(lake: Lake, loop: LoopConfig, judge_share: float) -> pl.DataFrame:
    """The learner's rows of the window, found by looking at all there are."""
    training = loop.training
    rows = settled_interactions(lake, "shop", loop).filter(~is_judged(judge_share, training))
    if training.window is not None:
        reach = pl.duration(microseconds=parse_duration(training.window))
        rows = rows.filter(pl.col("ts") > pl.col("ts").max() - reach)
    if training.window_generations is not None:
        latest = pl.col("generation").rank("dense", descending=True)
        rows = rows.filter(latest <= training.window_generations)
    return rows.sort("offset", "decision_id").collect()


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(each, marks=pytest.mark.slow) for each in range(2, 6))]
)
def test_the_window_is_that_of_its_definition(
    lake: Lake, history: list[pl.DataFrame], seed: int
) -> None:
    """In any log: generations that come back or are unknown, rows without a time, revisions."""
    rng = random.Random(seed)
    for day, rows in enumerate(history):
        number = rng.choice([None, 1, 2, day, 20])
        changed = rows[: rng.randint(1, 40)].with_columns(generation=pl.lit(number, dtype=pl.Int64))
        if rng.random() < 0.2:
            changed = changed.with_columns(
                ts=pl.lit(None, dtype=rows.schema["ts"]), date=pl.lit(None, dtype=pl.Date)
            )
        lake.append("interactions", changed)
        lake.append(
            "interactions",
            changed[:3].with_columns(revision=pl.lit(1, dtype=pl.Int64), reward=pl.lit(0.5)),
        )
    version = lake.version("interactions")
    for window in (None, "1 s", "30 h", "4 d", "90 d"):
        for generations in (None, 1, 2, 5, 99):
            for share in (0.3, 0.999):
                loop = config(window=window, window_generations=generations)
                log = LearnerLog(lake, "shop", loop, share, version=version)
                expected = by_definition(lake, loop, share)
                assert log.rows().equals(expected), (window, generations, share)
                for most in (1, 7, 1000):
                    assert log.count(most) == min(most, len(expected))


@pytest.mark.parametrize(
    ("training", "first"),
    [({"window": "2 d"}, 7), ({"window_generations": 2}, 6)],
    ids=["days", "generations"],
)
def test_what_is_older_than_the_window_is_not_read(
    lake: Lake, history: list[pl.DataFrame], training: dict[str, Any], first: int
) -> None:
    for rows in history:
        lake.append("interactions", rows)
    loop = config(calibration="platt", **training)
    before = train(lake, loop)
    told = report_on(lake, before, loop, 0.3).metrics
    spoil(lake, first)
    after = train(lake, loop)
    assert after.provenance == before.provenance
    assert scores(after) == scores(before)
    assert report_on(lake, after, loop, 0.3).metrics == told
    spoil(lake, DAYS)
    with pytest.raises(pl.exceptions.ComputeError):
        train(lake, loop)


def test_learning_on_reads_what_is_new(lake: Lake, history: list[pl.DataFrame]) -> None:
    loop = config(RidgeConfig(), start="champion", holdout=0.0)
    for rows in history[:-1]:
        lake.append("interactions", rows)
    champion = train(lake, loop)
    late = history[-2][:10].with_columns(decision_id="late-" + pl.col("decision_id"))
    lake.append("interactions", pl.concat([history[-1], late]))
    # A revision of what was learned is not learned again.
    lake.append(
        "interactions",
        history[-1][:5].with_columns(revision=pl.lit(1, dtype=pl.Int64), reward=pl.lit(0.5)),
    )
    known = set(history[-2]["decision_id"])
    version = lake.version("interactions")
    log = LearnerLog(lake, "shop", loop, 0.3, version=version)
    assert champion.provenance is not None
    fresh = log.rows_since(champion.provenance.lake_version)
    everything = current_interactions(lake, "shop").filter(~is_judged(0.3)).collect()
    old = [each for rows in history[:-1] for each in rows["decision_id"]]
    expected = everything.filter(~pl.col("decision_id").is_in(old))
    assert fresh.equals(expected.sort("offset", "decision_id"))
    assert not known.intersection(fresh["decision_id"])
    before = train(lake, loop, champion)
    spoil(lake, DAYS - 3)
    # The count of what there is needs no more rows than it is asked for, from the first file on.
    after = log.rows_since(champion.provenance.lake_version)
    assert after.equals(fresh)
    assert before.provenance is not None
    assert before.provenance.started_from == 1
    assert before.provenance.learned_from_us == champion.provenance.learned_from_us


@pytest.mark.parametrize("judge_window", [None, "3 d"])
def test_the_judge_has_a_window_of_its_own(
    lake: Lake, history: list[pl.DataFrame], tmp_path: Path, judge_window: str | None
) -> None:
    for rows in history:
        lake.append("interactions", rows)
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "mlartifacts")
    loop = config(window="2 d")
    nightly = Nightly(lake, registry, {"shop": loop}, NightlyConfig(judge_window=judge_window))
    challenger = train(lake, loop)
    if judge_window is not None:
        spoil(lake, 6)
    evaluation, _ = nightly.judge(challenger)
    judged = pl.concat(history).filter(is_judged(0.3))
    if judge_window is not None:
        judged = judged.filter(pl.col("ts") > pl.col("ts").max() - timedelta(days=3))
    assert evaluation.rows == len(judged)
