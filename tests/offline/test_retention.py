"""Retention: what is old enough goes, and nothing that something may still come of."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import polars as pl
import pytest

from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.join import join
from croupier.offline.lake import Lake
from croupier.offline.retention import forget_again, forget_all, retain, sink_again
from croupier.offline.sink import sink, sunk_position
from croupier.policy.events import Activation, Decision, Judgement
from croupier.policy.loop import LoopConfig
from tests.offline.logs import append, decision, outcome
from tests.offline.shop import Shop, no_steps
from tests.offline.worlds import random_world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from croupier.offline.lake import TableName
    from croupier.policy.events import Event

# Of MLflow's own making.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")

DAY = 86_400_000_000
HOUR = DAY // 24
# Midnight, in UTC.
START = 20_000 * DAY
WEEK = LoopConfig(attribution_window="1 h", log_retention="7 d")
LOGGED: tuple[TableName, ...] = ("decisions", "outcomes", "audits", "interactions")


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    # A path that Delta and polars each have their own way with.
    lake = Lake(tmp_path / "a lake")
    with lake.lock():
        yield lake


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteEventLog]:
    with SqliteEventLog(tmp_path / "log", segment_rows=4) as log:
        yield log


def ids(lake: Lake, table: TableName, loop: str = "shop") -> set[str]:
    found = lake.scan(table, loop).select("decision_id").collect()
    return set(found["decision_id"].to_list())


def hourly(days: int, loop: str = "shop", *, every: int = 6) -> list[Event]:
    """A decision and its outcome every few hours, named by day and hour."""
    events: list[Event] = []
    for hour in range(0, 24 * days, every):
        key, ts = f"{loop}-{hour // 24}-{hour % 24}", START + hour * HOUR
        events.append(decision(key, ts, loop=loop))
        events.append(outcome(key, f"o-{key}", ts + 1, loop=loop))
    return events


def filled(log: SqliteEventLog, lake: Lake, events: list[Event], now: int) -> None:
    for start in range(0, len(events), 4):
        append(log, events[start : start + 4])
    sink(log, lake)
    for loop in {event.loop for event in events}:
        join(lake, loop, WEEK, now)


def days_of(found: set[str]) -> set[int]:
    return {int(key.split("-")[1]) for key in found}


def test_whole_days_go_once_they_are_older_than_the_retention(
    log: SqliteEventLog, lake: Lake
) -> None:
    now = START + 10 * DAY + HOUR
    filled(log, lake, hourly(10), now)
    report = retain(lake, log, {"shop": WEEK}, now_us=now)
    # The third day is not older than seven days from its first hour to its last.
    assert report.decisions == {"shop": 12}
    for table in ("decisions", "outcomes", "interactions"):
        assert days_of(ids(lake, table)) == set(range(3, 10))
    # Not only from what is read: the files are gone too.
    dates = {path.parent.name for path in lake.root.rglob("*.parquet")}
    assert len(dates) == 7
    assert report.segments > 0
    assert log.start() > 1
    kept = [entry.key for entry in log.read(log.start(), limit=1000)]
    assert days_of(set(kept)) >= set(range(3, 10))
    again = retain(lake, log, {"shop": WEEK}, now_us=now)
    assert (again.decisions, again.segments) == ({}, 0)
    # What comes later goes on as if nothing had happened.
    append(log, [decision("shop-10-2", now)])
    assert sink(log, lake).decisions == 1


def test_a_loop_without_a_retention_keeps_everything_and_the_log_with_it(
    log: SqliteEventLog, lake: Lake
) -> None:
    now = START + 10 * DAY + HOUR
    filled(log, lake, hourly(1, "mail") + hourly(10), now)
    loops = {"shop": WEEK, "mail": LoopConfig()}
    report = retain(lake, log, loops, now_us=now)
    assert report.decisions == {"shop": 12}
    assert days_of(ids(lake, "decisions", "mail")) == {0}
    assert report.segments == 0
    assert log.start() == 1
    assert retain(lake, log, {"mail": LoopConfig()}, now_us=now).decisions == {}
    # So does one that nobody configures any more.
    assert retain(lake, log, {"shop": WEEK}, now_us=now).segments == 0


def test_what_is_not_joined_yet_stays_and_holds_what_came_the_day_before(
    log: SqliteEventLog, lake: Lake
) -> None:
    now = START + 20 * DAY
    filled(log, lake, hourly(2), now)
    append(log, [decision("shop-5-0", START + 5 * DAY), decision("shop-8-0", START + 8 * DAY)])
    sink(log, lake)
    retain(lake, log, {"shop": WEEK}, now_us=now)
    assert ids(lake, "decisions") == {"shop-5-0", "shop-8-0"}
    join(lake, "shop", WEEK, now)
    assert retain(lake, log, {"shop": WEEK}, now_us=now).decisions == {"shop": 2}


def test_a_deferred_decision_waits_only_if_it_was_activated(
    log: SqliteEventLog, lake: Lake
) -> None:
    now = START + 20 * DAY
    events: list[Event] = [
        decision("shop-1-0", START + DAY, deferred=True),
        decision("shop-2-0", START + 2 * DAY, deferred=True),
        Activation(decision_id="shop-2-0", loop="shop", ts=START + 2 * DAY + HOUR // 2),
        decision("shop-3-0", START + 3 * DAY, deferred=True),
        # Too late to count.
        Activation(decision_id="shop-3-0", loop="shop", ts=START + 3 * DAY + 2 * HOUR),
    ]
    append(log, events)
    sink(log, lake)
    retain(lake, log, {"shop": WEEK}, now_us=now)
    assert ids(lake, "decisions") == {"shop-1-0", "shop-2-0", "shop-3-0"}
    join(lake, "shop", WEEK, now)
    assert retain(lake, log, {"shop": WEEK}, now_us=now).decisions == {"shop": 3}


def test_what_is_not_in_the_lake_yet_holds_what_its_outcomes_may_be_of(
    log: SqliteEventLog, lake: Lake
) -> None:
    now = START + 20 * DAY
    filled(log, lake, hourly(4), now)
    append(log, [outcome("shop-2-0", "late", START + 2 * DAY + 2)])
    position = sunk_position(lake)
    retain(lake, log, {"shop": WEEK}, now_us=now)
    assert days_of(ids(lake, "decisions")) == {1, 2, 3}
    assert position is not None
    assert log.start() <= position
    assert [entry.position for entry in log.read(position, limit=9)] == [position]
    sink(log, lake)
    assert retain(lake, log, {"shop": WEEK}, now_us=now).decisions == {"shop": 12}


def test_at_any_time_of_any_log_only_what_is_old_and_done_goes(tmp_path: Path) -> None:
    """Sink, join, log and retain in any order: what is young or undone is always there."""
    for seed in range(6):
        rng = random.Random(seed)
        with SqliteEventLog(tmp_path / f"log-{seed}", segment_rows=3) as log:
            fresh = Lake(tmp_path / f"lake-{seed}")
            check_any_order(rng, log, fresh)


def check_any_order(rng: random.Random, log: SqliteEventLog, lake: Lake) -> None:
    made: list[Decision] = []
    now = START
    for step in range(25):
        now += rng.randrange(DAY)
        match rng.choice(["log", "log", "sink", "join", "retain"]):
            case "log":
                each = decision(f"shop-{step}-0", now, deferred=rng.random() < 0.2)
                made.append(each)
                append(log, [each])
                if rng.random() < 0.7:
                    of = rng.choice(made)
                    append(log, [outcome(of.decision_id, f"o{step}", now + 1)])
            case "sink":
                sink(log, lake)
            case "join":
                sink(log, lake)
                join(lake, "shop", WEEK, now)
            case "retain":
                joined_before = ids(lake, "interactions")
                in_lake = ids(lake, "decisions")
                retain(lake, log, {"shop": WEEK}, now_us=now)
                gone = in_lake - ids(lake, "decisions")
                for each in made:
                    if each.decision_id in gone:
                        assert each.ts < now - 7 * DAY
                        assert each.deferred or each.decision_id in joined_before
                assert ids(lake, "interactions") == joined_before - gone
        left = {entry.key for entry in log.read(log.start(), limit=10_000)}
        sunk = sunk_position(lake) or 1
        unsunk = {entry.key for entry in log.read(max(sunk, log.start()), limit=10_000)}
        assert unsunk <= left
        # Every decision is in the log or in the lake, or was old and done.
        missing = {each.decision_id for each in made} - left - ids(lake, "decisions")
        assert all(each.ts < now - 7 * DAY for each in made if each.decision_id in missing)


def test_a_crash_between_the_tables_leaves_nothing_to_be_joined_twice(
    log: SqliteEventLog, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = START + 10 * DAY + HOUR
    filled(log, lake, hourly(10), now)
    delete = Lake.delete
    for crash_at in LOGGED[1:]:

        def dying(self: Lake, table: TableName, *args: object, **kwargs: object) -> None:
            if table == crash_at:  # noqa: B023
                raise KeyboardInterrupt
            delete(self, table, *args, **kwargs)  # type: ignore[arg-type]

        with monkeypatch.context() as patched:
            patched.setattr(Lake, "delete", dying)
            with pytest.raises(KeyboardInterrupt):
                retain(lake, log, {"shop": WEEK}, now_us=now)
        report = join(lake, "shop", WEEK, now)
        assert report.joined == 0
    retain(lake, log, {"shop": WEEK}, now_us=now)
    for table in ("decisions", "outcomes", "interactions"):
        assert days_of(ids(lake, table)) == set(range(3, 10))


def test_judgements_go_with_their_days(log: SqliteEventLog, lake: Lake) -> None:
    now = START + 10 * DAY
    judged = [
        Judgement(
            judgement_id=f"j{day}",
            loop="shop",
            decision_id="a",
            other_decision_id="b",
            auditor="anna",
            distance=0.5,
            ts=START + day * DAY,
        )
        for day in range(10)
    ]
    append(log, [*judged])
    sink(log, lake)
    retain(lake, log, {"shop": WEEK}, now_us=now)
    left = lake.scan("audits", "shop").select("judgement_id").collect()["judgement_id"].to_list()
    assert sorted(left) == [f"j{day}" for day in range(3, 10)]


def test_a_loop_is_forgotten_whole(log: SqliteEventLog, lake: Lake) -> None:
    now = START + 2 * DAY
    filled(log, lake, hourly(2) + hourly(2, "mail"), now)
    open_ = decision("shop-2-0", now)
    append(log, [open_])
    sink(log, lake)
    assert forget_all(lake, log, "shop").decisions == {"shop": 9}
    for table in LOGGED:
        assert ids(lake, table) == set()
    assert len(ids(lake, "interactions", "mail")) == 8
    # Segments that only the other loop needs stay.
    assert {entry.loop for entry in log.read(log.start(), limit=1000)} == {"shop", "mail"}
    # An outcome of what was forgotten is one of nothing.
    append(log, [outcome("shop-2-0", "o", now + 1)])
    sink(log, lake)
    assert join(lake, "shop", WEEK, now + DAY).orphans == 1
    assert forget_all(lake, log, "mail").segments > 0
    assert forget_all(Lake(lake.root.parent / "none"), log, "shop").decisions == {}


def test_the_segment_that_was_open_goes_in_a_later_night(log: SqliteEventLog, lake: Lake) -> None:
    loops = {"shop": LoopConfig(), "mail": LoopConfig()}
    append(log, [decision(f"shop-0-{hour}", START) for hour in range(4)])
    sink(log, lake)
    assert forget_all(lake, log, "shop").segments == 0
    assert retain(lake, log, loops, now_us=START).segments == 0
    append(log, [decision("mail-0-0", START, loop="mail")])
    sink(log, lake)
    assert retain(lake, log, loops, now_us=START).segments == 1
    assert log.read(log.start(), limit=1)[0].key == "mail-0-0"


def test_a_lake_that_is_built_anew_forgets_the_same(
    log: SqliteEventLog, lake: Lake, tmp_path: Path
) -> None:
    now = START + 10 * DAY + HOUR
    filled(log, lake, hourly(10) + hourly(10, "mail"), now)
    retain(lake, log, {"shop": WEEK}, now_us=now)
    forget_all(lake, log, "mail")
    # Ids that were forgotten may come again.
    append(log, hourly(1, "mail", every=12))
    assert sink(log, lake).decisions == 2
    fresh = Lake(tmp_path / "fresh")
    with fresh.lock():
        sink_again(log, fresh, lake, ("shop", "mail"))
        for loop in ("shop", "mail"):
            join(lake, loop, WEEK, now)
            join(fresh, loop, WEEK, now)
            forget_again(fresh, lake, loop)
            for table in LOGGED:
                one, other = (
                    each.scan(table, loop).sort("offset").collect() for each in (lake, fresh)
                )
                assert one.equals(other), (loop, table)


def test_the_night_forgets_and_trains_only_what_is_due(tmp_path: Path) -> None:
    config = LoopConfig(
        attribution_window="1 min", log_retention="2 d", model_export_frequency="3 d"
    )
    shop = Shop(tmp_path, random_world(2, 2, seed=1), loops={"shop": config})
    shop.day(60)
    assert shop.night().loops[0].challenger == 1
    first = shop.lake.scan("decisions").select(pl.len()).collect().item()
    assert first == 60
    shop.now += 2 * DAY
    shop.day(60)
    shop.now += HOUR
    with shop.log() as log:
        report = shop.nightly.run(log, now_us=shop.now, steps=no_steps, due_only=True)
        # The one that there was too little to judge by is judged; none is trained.
        assert (report.loops[0].challenger, report.loops[0].resumed) == (1, True)
        assert shop.nightly.registry.numbers("shop") == [1]
        assert report.loops[0].join.joined == 60
        shop.now += DAY
        report = shop.nightly.run(log, now_us=shop.now, steps=no_steps, due_only=True)
        assert report.loops[0].challenger == 2
        assert report.retention.decisions == {"shop": 60}
    assert shop.lake.scan("decisions").select(pl.len()).collect().item() == 60
