"""A lake that is as the log says, one that isn't, and files that are put together."""

from __future__ import annotations

import shutil
from datetime import date
from typing import TYPE_CHECKING

import polars as pl
import pytest

from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.interactions import current_interactions
from croupier.offline.join import join
from croupier.offline.lake import Lake, TableName
from croupier.offline.retention import forget_all, retain
from croupier.offline.sink import sink
from croupier.offline.verify import LoopVerification, verify_loop
from croupier.policy.guardrails import Guardrail
from croupier.policy.loop import LoopConfig
from tests.offline.logs import EPOCH_US, append, decision, mixed_events, outcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAY = 86_400_000_000
CONFIG = LoopConfig(attribution_window="12 h", log_retention="7 d")
LATER = EPOCH_US + 400 * DAY


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty days of all kinds of events, repeated ones too, joined night by night."""
    root = tmp_path_factory.mktemp("nights")
    lake = Lake(root / "lake")
    events = mixed_events(480, seed=4)
    with SqliteEventLog(root / "log", synchronous="normal") as log:
        for start in range(0, 480, 60):
            append(log, events[start : start + 60])
            sink(log, lake, batch=20)
            join(lake, "shop", CONFIG, EPOCH_US + (start + 60) * DAY // 24)
    return root


@pytest.fixture
def log(nights: Path, tmp_path: Path) -> Iterator[SqliteEventLog]:
    shutil.copytree(nights / "log", tmp_path / "log")
    with SqliteEventLog(tmp_path / "log", synchronous="normal") as opened:
        yield opened


@pytest.fixture
def lake(nights: Path, tmp_path: Path) -> Lake:
    shutil.copytree(nights / "lake", tmp_path / "lake")
    return Lake(tmp_path / "lake")


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[SqliteEventLog]:
    with SqliteEventLog(tmp_path / "empty", synchronous="normal") as opened:
        yield opened


def verified(lake: Lake, log: SqliteEventLog) -> LoopVerification:
    return verify_loop(lake, log, "shop", CONFIG)


def test_a_lake_that_is_as_the_log_says(lake: Lake, log: SqliteEventLog) -> None:
    found = verified(lake, log)
    assert found.sound
    assert found.records > 150
    assert found.checked == len(current_interactions(lake, "shop").collect())
    # Records that are not sunk yet, and outcomes that no join has read, are nobody's fault.
    append(log, [decision("x", LATER), outcome("d3", "x", LATER)])
    assert verified(lake, log) == found
    sink(log, lake)
    assert verified(lake, log).sound


@pytest.mark.parametrize("table", ["decisions", "outcomes", "audits"])
def test_a_row_that_is_missing_is_found(lake: Lake, log: SqliteEventLog, table: TableName) -> None:
    rows = lake.scan(table).sort("offset").collect()
    gone = rows.filter(pl.col("loop") == "shop")["offset"][7]
    lake.replace(table, rows.filter(pl.col("offset") != gone))
    assert (verified(lake, log).missing, verified(lake, log).sound) == (1, False)


def test_rows_that_are_there_twice_or_from_nowhere_are_found(
    lake: Lake, log: SqliteEventLog
) -> None:
    row = lake.scan("decisions", "shop").sort("offset").head(1).collect()
    lake.append("decisions", row)
    assert (verified(lake, log).repeated, verified(lake, log).unknown) == (1, 0)
    lake.append("decisions", row.with_columns(decision_id=pl.lit("from nowhere")))
    assert (verified(lake, log).repeated, verified(lake, log).unknown) == (1, 1)


def test_a_reward_that_was_altered_is_found(lake: Lake, log: SqliteEventLog) -> None:
    rows = lake.scan("interactions").sort("offset").collect()
    place = pl.col("offset") == current_interactions(lake, "shop").collect()["offset"][5]
    last = pl.col("revision") == pl.col("revision").filter(place).max()
    altered = pl.when(place & last).then(pl.col("reward") + 2**-40).otherwise("reward")
    lake.replace("interactions", rows.with_columns(reward=altered))
    assert verified(lake, log).wrong == 1


def test_a_guardrail_that_was_altered_is_found(empty: SqliteEventLog, tmp_path: Path) -> None:
    """But not that interactions have none that were joined before it was configured."""
    log, lake, guarded = (
        empty,
        Lake(tmp_path / "lake"),
        LoopConfig(guardrails={"refund": Guardrail()}),
    )
    for number in range(6):
        name, at = f"d{number}", EPOCH_US + number * DAY
        told = {"refund": 1.0} if number % 2 else {}
        append(log, [decision(name, at), outcome(name, name, at, guardrails=told)])
        sink(log, lake)
        join(lake, "shop", guarded if number > 2 else LoopConfig(), at + DAY // 2)
    rows = lake.scan("interactions").sort("offset").collect()
    assert rows["guardrails"].is_null().to_list() == [True] * 3 + [False] * 3
    found = verify_loop(lake, log, "shop", guarded)
    assert (found.sound, found.checked) == (True, 6)
    last = pl.col("decision_id") == "d5"
    none = pl.lit([{"name": "refund", "reward": 0.0}], dtype=rows.schema["guardrails"])
    altered = pl.when(last).then(none).otherwise("guardrails")
    lake.replace("interactions", rows.with_columns(guardrails=altered))
    assert verify_loop(lake, log, "shop", guarded).wrong == 1
    # One that isn't configured any more is nobody's concern.
    assert verify_loop(lake, log, "shop", LoopConfig()).sound
    lake.replace("interactions", pl.concat([rows, rows.tail(1)]))
    assert verify_loop(lake, log, "shop", guarded).wrong == 1


def test_what_was_forgotten_is_not_missed(lake: Lake, log: SqliteEventLog) -> None:
    join(lake, "shop", CONFIG, EPOCH_US + 30 * DAY)
    retain(lake, log, {"shop": CONFIG}, now_us=EPOCH_US + 20 * DAY)
    found = verified(lake, log)
    assert found.sound
    assert found.records > 0
    forget_all(lake, log, "shop")
    assert verified(lake, log).records == 0


def test_compaction_changes_files_alone(lake: Lake, log: SqliteEventLog) -> None:
    """The join takes no row for a new one, and misses none of a new file that was put together."""
    before = {name: len(lake.snapshot(name, "shop").files) for name in ("decisions", "outcomes")}
    rows = current_interactions(lake).sort("loop", "offset").collect()
    append(log, [outcome("d3", "late", EPOCH_US + 3 * DAY), decision("new", EPOCH_US + 2 * DAY)])
    sink(log, lake)
    fewer = lake.compact(before=date(2100, 1, 1))
    assert fewer["decisions"] > 0
    assert len(lake.snapshot("decisions", "shop").files) < before["decisions"]
    assert current_interactions(lake).sort("loop", "offset").collect().equals(rows)
    report = join(lake, "shop", CONFIG, EPOCH_US + 20 * DAY)
    assert (report.joined, report.revised) == (1, 1)
    assert verified(lake, log).sound
    # Nothing is left to be done, and days that still grow are left alone.
    assert set(lake.compact(before=date(2020, 1, 1)).values()) == {0}
