"""What generations earned, kept day by day: as if it were worked out anew from all rows."""

from __future__ import annotations

import math
import random
import shutil
from datetime import date, timedelta
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from croupier.offline import realised as module
from croupier.offline.audit import draws_test
from croupier.offline.guardrails import column_of, guardrail_reward, packed
from croupier.offline.interactions import current_interactions
from croupier.offline.lake import Lake
from croupier.offline.realised import Moments, realised
from croupier.offline.rewards import fold_of
from croupier.policy.generation import cold_start
from tests.offline.worlds import random_world

if TYPE_CHECKING:
    from pathlib import Path

FIRST = date(2026, 9, 21)
WORLD = random_world(2, 3, seed=1)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    """Decisions of two generations, some of which stand for others."""
    early = WORLD.log(cold_start("shop"), 400, seed=1)
    later = WORLD.generation(4, cold_start("shop").exploration)
    rows = pl.concat([early, WORLD.log(later, 400, seed=2, first=400)])
    rng = np.random.default_rng(1)
    # Some of them were joined before there were guardrails.
    refunds = pl.DataFrame({column_of("refund"): rng.random(len(rows))}).select(packed(["refund"]))
    joined = pl.when(pl.Series(rng.random(len(rows)) < 0.7)).then(refunds.to_series())
    return rows.with_columns(
        keep_prob=pl.Series(rng.choice([0.25, 0.5, 1.0], len(rows))),
        revision=pl.lit(0, dtype=pl.Int64),
        guardrails=joined,
    )


def on(rows: pl.DataFrame, day: int) -> pl.DataFrame:
    return rows.with_columns(date=pl.lit(FIRST + timedelta(days=day)))


def revised(rows: pl.DataFrame) -> pl.DataFrame:
    """Of another reward, and of another guardrail."""
    other = rows.select((1.0 - guardrail_reward("refund").fill_null(0.5)).alias("other"))
    refunds = other.rename({"other": column_of("refund")}).select(packed(["refund"]))
    return rows.with_columns(
        reward=1.0 - pl.col("reward"),
        revision=pl.col("revision") + 1,
        guardrails=refunds.to_series(),
    )


def check(lake: Lake) -> None:
    """What is known by sums is what the rows say."""
    rows = current_interactions(lake, "shop").filter(pl.col("generation").is_not_null())
    anew = dict(rows.collect().group_by("generation"))
    found = realised(lake, "shop")
    assert sorted(found) == sorted(number for (number,) in anew)
    for (number,), served in anew.items():
        reward, weight = served["reward"].to_numpy(), 1.0 / served["keep_prob"].to_numpy()
        mean = np.average(reward, weights=weight)
        influence = weight * (reward - mean) / weight.mean()
        n = len(reward)
        known = found[number]
        assert known.moments.rows == n
        assert known.moments.weight == pytest.approx(weight.sum())
        assert known.moments.mean == pytest.approx(mean)
        error = None if n < 2 else math.sqrt((influence**2).sum() / (n - 1) / n)
        assert known.moments.error() == (None if error is None else pytest.approx(error))
        refunds = served.select(guardrail_reward("refund")).to_series()
        having = refunds.is_not_null().to_numpy()
        assert sorted(known.guardrails) == (["refund"] if having.any() else [])
        if having.any():
            refund, told = known.guardrails["refund"], refunds.drop_nulls().to_numpy()
            assert refund.rows == having.sum()
            assert refund.mean == pytest.approx(np.average(told, weights=weight[having]))
        p_value = draws_test(served).combined_p_value
        assert known.propensity_p_value == pytest.approx(p_value, rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_to_the_table_sums_are_those_of_its_rows(
    lake: Lake, log: pl.DataFrame, seed: int
) -> None:
    """Appends to days of any age, revisions, revisions of revisions, compaction and deletion."""
    rng = random.Random(seed)
    waiting = log.sample(fraction=1.0, shuffle=True, seed=seed)
    while len(waiting):
        take = rng.randint(1, 80)
        fresh, waiting = on(waiting[:take], rng.randrange(3)), waiting[take:]
        match rng.choice(["append", "append", "revise", "revise", "compact", "forget", "delete"]):
            case "revise" if lake.exists("interactions"):
                current = current_interactions(lake, "shop").collect()
                chosen = current.sample(min(len(current), 9), seed=rng.randrange(99))
                lake.append("interactions", pl.concat([fresh, revised(chosen)]))
            case "compact" if lake.exists("interactions"):
                assert set(lake.compact(before=FIRST + timedelta(days=9))) == {"interactions"}
            case "forget":
                lake.delete("interactions", f"date = '{FIRST}' AND loop = 'shop'")
            case "delete":
                lake.delete("interactions", f"\"offset\" < {rng.randrange(200)} AND loop = 'shop'")
            case _:
                lake.append("interactions", fresh)
        if rng.random() < 0.7:
            check(lake)
    check(lake)


def test_a_night_reads_what_has_come_since(lake: Lake, log: pl.DataFrame, tmp_path: Path) -> None:
    """Every older file may be gone, unless it is of a day that has a revision now."""
    for day in range(6):
        lake.append("interactions", on(log[day * 100 : day * 100 + 100], day))
    realised(lake, "shop")
    old = list((lake.root / "interactions").rglob("*.parquet"))
    assert len(old) == 6
    lake.append("interactions", on(log[600:700], 6))
    # A revision opens its own day, and no other.
    lake.append("interactions", revised(on(log[500:505], 5)))
    whole = Lake(tmp_path / "whole")
    shutil.copytree(lake.root / "interactions", whole.root / "interactions")
    for path in old:
        if f"date={FIRST + timedelta(days=5)}" not in str(path):
            path.write_bytes(b"nothing that can be read")
    found, anew = realised(lake, "shop"), realised(whole, "shop")
    assert list(found) == list(anew) == [0, 4]
    for number, each in anew.items():
        assert found[number].moments.mean == pytest.approx(each.moments.mean)
        assert found[number].moments.error() == pytest.approx(each.moments.error())
        assert found[number].propensity_p_value == pytest.approx(each.propensity_p_value)
    shutil.rmtree(lake.root / ".realised")
    with pytest.raises(pl.exceptions.ComputeError):
        realised(lake, "shop")


def test_sums_that_are_not_in_order_are_made_again(lake: Lake, log: pl.DataFrame) -> None:
    lake.append("interactions", on(log[:50], 0))
    before = realised(lake, "shop")
    (path,) = (lake.root / ".realised" / "shop").iterdir()
    for content in (b"", path.read_bytes()[:-5], b"\x81\xa6format\x63"):
        path.write_bytes(content)
        assert realised(lake, "shop") == before


def test_of_many_actions_groups_are_summed_up(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Days with few actions are put into the same groups as those with many."""
    few = WORLD.log(cold_start("shop"), 300, seed=3)
    many = random_world(2, 9, seed=1).log(cold_start("shop"), 900, seed=4)
    monkeypatch.setattr(module, "_MOST_CELLS", 4)
    lake.append("interactions", on(few, 0))
    assert realised(lake, "shop")[0].propensity_p_value > 1e-3
    lake.append("interactions", on(many, 1))
    both = realised(lake, "shop")[0]
    assert both.moments.rows == 1200
    assert both.propensity_p_value > 1e-3
    # Every draw of the first action was really one of another group's.
    group = [fold_of(f"a{each}") % 4 for each in range(9)]
    other = next(each for each in range(9) if group[each] != group[0])
    twisted = many.with_columns(
        decision_id="t" + pl.col("decision_id"),
        chosen=pl.when(pl.col("chosen") == 0).then(other).otherwise("chosen"),
    )
    lake.append("interactions", on(twisted.cast(many.schema), 2))
    assert realised(lake, "shop")[0].propensity_p_value < 1e-6


def test_moments_of_parts_are_those_of_the_whole() -> None:
    """However far rewards are from 0: their spread isn't what is left of large numbers."""
    rng = np.random.default_rng(1)
    rewards = 1e6 + rng.normal(size=1000)
    weights = rng.choice([1.0, 4.0], 1000)
    whole = Moments.of(rewards, weights)
    parts = Moments()
    for part in np.array_split(np.arange(1000), 7):
        parts += Moments.of(rewards[part], weights[part])
    assert parts.rows == 1000
    assert parts.mean == pytest.approx(whole.mean, rel=1e-14)
    assert parts.error() == pytest.approx(whole.error(), rel=1e-9)
