"""What the last join has left to do: found in the files that can hold it, and in no others."""

from __future__ import annotations

import random
from datetime import date
from typing import TYPE_CHECKING

import polars as pl
import pytest

from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.join import join
from croupier.offline.lake import Lake
from croupier.offline.pending import first_unjoined
from croupier.offline.retention import retain
from croupier.offline.rewards import KEY
from croupier.offline.sink import sink
from croupier.policy.events import Activation
from croupier.policy.loop import LoopConfig
from croupier.service.scorer import uuid7
from tests.offline.logs import append, decision, outcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAY = 86_400_000_000
HOUR = DAY // 24
START = 20_700 * DAY


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteEventLog]:
    with SqliteEventLog(tmp_path / "log", segment_rows=50) as log:
        yield log


def by_definition(lake: Lake, config: LoopConfig) -> date | None:
    """Day of the first decision without an interaction, of all that there are."""
    reach = pl.col("ts") + pl.duration(microseconds=config.late_horizon_us)
    activated = (
        lake.scan("outcomes", "shop")
        .filter(pl.col("kind") == "activation")
        .select("decision_id", activated="ts")
    )
    left = (
        lake.scan("decisions", "shop")
        .join(lake.scan("interactions", "shop"), on=KEY, how="anti", nulls_equal=True)
        .join(activated, on="decision_id", how="left")
        .filter(~pl.col("deferred") | (pl.col("activated") <= reach))
    )
    first: date | None = left.select(pl.col("date").min()).collect().item()
    return first


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_first_of_all_that_have_no_interaction(
    log: SqliteEventLog, lake: Lake, seed: int
) -> None:
    """Whatever came in which order, under windows that change, with ids of either kind."""
    rng = random.Random(seed)
    now, made = START, [("x", START)]
    for step in range(30):
        config = LoopConfig(
            attribution_window=rng.choice(["1 h", "30 h", "4 d"]), late_horizon="10 d"
        )
        now += rng.randrange(DAY)
        match rng.choice(["decide", "decide", "send", "sink", "sink", "join"]):
            case "decide":
                ts = now - rng.choice([0, 0, 0, 5 * DAY])
                each = uuid7(ts) if seed % 2 else f"d{step}"
                made.append((each, ts))
                append(log, [decision(each, ts, deferred=rng.random() < 0.4)])
            case "send":
                of, ts = rng.choice(made)
                sent = ts + rng.randrange(12 * DAY)
                append(log, [Activation(decision_id=of, loop="shop", ts=sent)])
                append(log, [outcome(of, f"o{step}", sent)])
            case "sink":
                sink(log, lake)
            case _:
                join(lake, "shop", config, now)
        assert first_unjoined(lake, "shop", config) == by_definition(lake, config), step


def filled(log: SqliteEventLog, lake: Lake, config: LoopConfig, days: range) -> None:
    for day in days:
        for hour in range(24):
            ts = START + day * DAY + hour * HOUR
            each = uuid7(ts)
            append(log, [decision(each, ts), outcome(each, f"o{each}", ts)])
        sink(log, lake)
        join(lake, "shop", config, START + (day + 1) * DAY)


def test_a_night_looks_for_what_to_forget_where_it_can_be(log: SqliteEventLog, lake: Lake) -> None:
    """Not in the days that are joined: there the oldest file says where the log may begin."""
    config = LoopConfig(attribution_window="1 h", log_retention="90 d")
    filled(log, lake, config, range(12))
    for table in ("decisions", "outcomes", "interactions"):
        days = sorted((lake.root / table / "loop=shop").iterdir())
        assert len(days) == 12
        for path in (each for day in days[1:-2] for each in day.iterdir()):
            path.write_bytes(b"nothing that can be read")
    now = START + 12 * DAY
    report = retain(lake, log, {"shop": config}, now_us=now)
    assert (report.decisions, report.segments) == ({}, 0)
    assert first_unjoined(lake, "shop", config) == date.fromordinal(
        date(1970, 1, 1).toordinal() + START // DAY + 11
    )


def test_a_window_that_became_shorter_leaves_nothing_out(log: SqliteEventLog, lake: Lake) -> None:
    """What was open under the longer one is joined by the next join."""
    filled(log, lake, LoopConfig(attribution_window="7 d"), range(10))
    short = LoopConfig(attribution_window="1 h")
    waiting = lake.scan("decisions").select(pl.len()).collect().item()
    waiting -= lake.scan("interactions").select(pl.len()).collect().item()
    assert waiting > 6 * 24
    assert join(lake, "shop", short, START + 11 * DAY).joined == waiting
    assert join(lake, "shop", short, START + 12 * DAY).joined == 0


def test_a_window_that_became_longer_joins_nothing_twice(log: SqliteEventLog, lake: Lake) -> None:
    filled(log, lake, LoopConfig(attribution_window="1 h"), range(5))
    long = LoopConfig(attribution_window="3 d")
    assert join(lake, "shop", long, START + 6 * DAY).joined == 0
    assert join(lake, "shop", long, START + 9 * DAY).joined == 1
    ids = lake.scan("interactions").select("decision_id").collect()["decision_id"]
    assert len(ids) == ids.n_unique() == 5 * 24
