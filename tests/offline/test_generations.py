"""The generations table: merged rows, one champion, and what really happened."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from croupier.offline.generations import record_generation, record_promotion, refresh_realised
from croupier.offline.lake import SCHEMAS, Lake
from croupier.offline.realised import realised
from croupier.offline.summaries.nights import swings_of
from croupier.policy.generation import cold_start
from tests.offline.logs import EPOCH_US
from tests.offline.worlds import random_world

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def rows(lake: Lake, loop: str = "shop") -> dict[int, dict[str, Any]]:
    """What is known of every generation, without what isn't."""
    table = lake.scan("generations", loop).sort("generation").collect()
    return {
        row["generation"]: {name: value for name, value in row.items() if value is not None}
        for row in table.to_dicts()
    }


def test_values_are_merged_into_the_row_there_is(lake: Lake) -> None:
    created = datetime(2026, 11, 1, tzinfo=UTC)
    record_generation(lake, {"loop": "shop", "generation": 1, "seed": 7, "created": created})
    record_generation(lake, {"loop": "mail", "generation": 1, "seed": 8})
    record_generation(lake, {"loop": "shop", "generation": 1, "estimate": 0.25, "status": "x"})
    record_generation(lake, {"loop": "shop", "generation": 0})
    assert rows(lake) == {
        0: {"loop": "shop", "generation": 0},
        1: {
            "loop": "shop",
            "generation": 1,
            "seed": 7,
            "created": created,
            "estimate": 0.25,
            "status": "x",
        },
    }
    assert rows(lake, "mail")[1]["seed"] == 8
    assert lake.scan("generations").collect().schema == SCHEMAS["generations"]


def test_what_is_known_already_is_not_written_again(lake: Lake) -> None:
    row = {"loop": "shop", "generation": 1, "estimate": 0.1, "created": datetime.now(UTC)}
    record_generation(lake, row)
    record_generation(lake, row)
    assert lake.version("generations") == 0


def test_a_promotion_retires_the_champion_in_the_same_commit(lake: Lake) -> None:
    for number in range(3):
        record_generation(lake, {"loop": "shop", "generation": number, "status": "challenger"})
    record_generation(lake, {"loop": "mail", "generation": 1, "status": "champion"})
    for number in (0, 2, 1, 2):
        version = lake.version("generations")
        record_promotion(lake, "shop", number, now_us=EPOCH_US + number)
        assert lake.version("generations") == version + 1
        champions = [each for each, row in rows(lake).items() if row["status"] == "champion"]
        assert champions == [number]
    assert {row["status"] for row in rows(lake).values()} == {"champion", "retired"}
    promoted = rows(lake)[2]["promoted"]
    assert round(promoted.timestamp() * 1e6) == EPOCH_US + 2
    assert rows(lake, "mail")[1]["status"] == "champion"


def test_an_override_stays_on_record(lake: Lake) -> None:
    record_promotion(lake, "shop", 1, now_us=EPOCH_US, override_reason="the sale begins")
    record_promotion(lake, "shop", 2, now_us=EPOCH_US)
    record_promotion(lake, "shop", 1, now_us=EPOCH_US)
    assert rows(lake)[1]["override_reason"] == "the sale begins"
    assert "override_reason" not in rows(lake)[2]


def test_what_really_happened_is_put_beside_what_was_promised(lake: Lake) -> None:
    world = random_world(2, 3, seed=1)
    early = world.log(cold_start("shop"), 300, seed=1)
    late = world.log(world.generation(4, cold_start("shop").exploration), 200, seed=2, first=300)
    imported = early.with_columns(
        generation=pl.lit(None, dtype=pl.Int64), decision_id="i" + pl.col("decision_id")
    )
    lake.append("interactions", pl.concat([early, late, imported]))
    record_generation(lake, {"loop": "shop", "generation": 4, "estimate": 0.5})
    refresh_realised(lake, "shop", confidence=0.9)

    found = rows(lake)
    assert set(found) == {0, 4}
    assert found[4]["estimate"] == 0.5
    for number, log in ((0, early), (4, late)):
        rewards = log["reward"].to_numpy()
        half = stats.norm.ppf(0.95) * rewards.std(ddof=1) / math.sqrt(len(rewards))
        row = found[number]
        assert row["decisions"] == len(rewards)
        assert row["realised_mean"] == pytest.approx(rewards.mean())
        assert row["realised_lower"] == pytest.approx(rewards.mean() - half)
        assert row["realised_upper"] == pytest.approx(rewards.mean() + half)
        # Draws of the real sampler; the seeds are fixed, so this holds or it doesn't.
        assert row["propensity_p_value"] > 1e-3
    version = lake.version("generations")
    refresh_realised(lake, "shop", confidence=0.9)
    assert np.isclose(rows(lake)[4]["propensity_p_value"], found[4]["propensity_p_value"])
    assert lake.version("generations") <= version + 1


def test_draws_that_were_not_those_logged_are_found(lake: Lake) -> None:
    """Every second draw of the second action was really another one's."""
    log = random_world(2, 3, seed=1).log(cold_start("shop"), 400, seed=1)
    twisted = log.with_columns(
        chosen=pl.when((pl.col("chosen") == 1) & (pl.col("offset") % 2 == 0))
        .then(0)
        .otherwise("chosen")
    )
    lake.append("interactions", twisted.select(log.columns).cast(log.schema))
    refresh_realised(lake, "shop")
    assert rows(lake)[0]["propensity_p_value"] < 1e-6


def test_a_single_reward_has_no_interval(lake: Lake) -> None:
    lake.append("interactions", random_world(2, 3, seed=1).log(cold_start("shop"), 1, seed=1))
    refresh_realised(lake, "shop")
    row = rows(lake)[0]
    assert row["decisions"] == 1
    assert "realised_mean" in row
    assert "realised_lower" not in row


def test_a_damaged_row_does_not_end_the_night(lake: Lake) -> None:
    """`croupier audit` is there to tell; see its tests."""
    log = random_world(2, 3, seed=1).log(cold_start("shop"), 50, seed=1)
    damaged = log.with_columns(
        pmf=pl.when(pl.col("offset") == 7).then(pl.lit([0.5, 0.2, 0.2])).otherwise("pmf")
    )
    lake.append("interactions", damaged)
    refresh_realised(lake, "shop")
    assert rows(lake)[0]["decisions"] == 50


def test_a_loop_without_interactions_has_nothing_to_record(lake: Lake) -> None:
    refresh_realised(lake, "shop")
    assert not lake.exists("generations")


@pytest.mark.parametrize(("swing", "oscillates"), [(0.15, True), (0.0, False)])
def test_generations_that_go_up_and_down_are_told_of(
    lake: Lake, swing: float, oscillates: bool
) -> None:
    # Eight generations of 600 decisions; a standard error of .02, and fixed draws.
    rng = np.random.default_rng(3)
    world = random_world(2, 3, seed=1)
    start = cold_start("shop")
    for number in range(8):
        log = world.log(start, 600, seed=number, first=600 * number)
        chance = 0.5 + swing * (-1) ** number
        rewards = (rng.random(len(log)) < chance).astype(float)
        lake.append(
            "interactions",
            log.with_columns(generation=pl.lit(number, pl.Int64), reward=pl.Series(rewards)),
        )
        if number == 4:
            refresh_realised(lake, "shop")
            assert "oscillates" not in rows(lake)[4]
    refresh_realised(lake, "shop")
    found = rows(lake)
    assert found[7]["oscillates"] is oscillates
    assert (found[7]["spread_p_value"] < 0.01) is oscillates
    assert (found[7]["alternation_p_value"] < 0.05) is oscillates
    assert all("oscillates" not in found[number] for number in range(7))
    _same_signal(swings_of(realised(lake, "shop")), found[7])


def _same_signal(table: pl.DataFrame, last: Mapping[str, Any]) -> None:
    """The table of the page says of the last generation what its row says, and bands agree."""
    assert sorted(table["generation"].unique()) == [5, 6, 7]
    told = {row["statistic"]: row for row in table.filter(generation=7).iter_rows(named=True)}
    assert told["spread"]["p_value"] == last["spread_p_value"]
    assert told["alternation"]["p_value"] == last["alternation_p_value"]
    assert {row["oscillates"] for row in told.values()} == {last["oscillates"]}
    assert {row["generations"] for row in told.values()} == {8}
    for row in table.iter_rows(named=True):
        assert row["lower"] <= row["expected"] <= row["upper"]
        low = row["statistic"] == "autocorrelation"
        beyond = row["seen"] <= row["lower"] if low else row["seen"] >= row["upper"]
        # Shares come in steps: many surrogates have the very value at the band's end.
        if row["statistic"] not in {"sign_changes", "returns"}:
            assert beyond is (row["p_value"] <= row["level"])
