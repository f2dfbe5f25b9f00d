"""The sink over Kafka's partitions: as over one sequence, everything once, whatever happens."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from kafka import KafkaProducer

from croupier.eventlog.kafka.connection import client_settings, ensure_topics
from croupier.eventlog.kafka.reading import KafkaLog
from croupier.eventlog.kafka.topics import KIND_HEADER, OFFSET_HEADER, REASON_HEADER, SCHEMA_HEADER
from croupier.eventlog.kafka.topics import topic as topic_of
from croupier.eventlog.log import Record
from croupier.eventlog.sqlite import SqliteEventLog
from croupier.offline.join import join
from croupier.offline.lake import Lake, ProgressError
from croupier.offline.retention import forget_again, forget_all, retain, sink_again
from croupier.offline.sink import PartitionSink, partition_states, sink, sunk_position
from croupier.policy.errors import InvalidInputError
from croupier.policy.events import encode_event
from croupier.policy.loop import LoopConfig
from tests.eventlog.test_kafka_reading import dead_letters
from tests.offline.kafka_sinks import LOOPS, rows
from tests.offline.logs import EPOCH_US, SUNK, append, decision, mixed_events, outcome
from tests.offline.test_sink import CrashError, CrashingLake
from tests.ray_cluster import Killing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from croupier.eventlog.kafka.config import KafkaConfig
    from croupier.eventlog.kafka.topics import Stream
    from croupier.offline.lake import TableName
    from croupier.offline.ray_engine import RayEngine
    from croupier.policy.events import Event

pytestmark = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

DAY_US = 86_400_000_000


@pytest.fixture
def log(kafka_config: KafkaConfig) -> Iterator[KafkaLog]:
    ensure_topics(kafka_config, LOOPS)
    with KafkaLog(kafka_config, LOOPS) as opened:
        yield opened


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def values(root: Path, table: TableName) -> set[str]:
    """The rows of a table, wherever they stood in the log."""
    return {repr(row) for row in rows(root, table).drop("offset", "partition").iter_rows()}


def test_what_was_logged_is_in_the_lake_once_as_from_sqlite(log: KafkaLog, tmp_path: Path) -> None:
    """Run by run and batch by batch, with repeats in the batch, of earlier ones and of all runs."""
    events = mixed_events(200, seed=5)
    by_sqlite, by_kafka = Lake(tmp_path / "sqlite"), Lake(tmp_path / "kafka")
    with SqliteEventLog(tmp_path / "log") as other:
        append(other, events)
        expected = sink(other, by_sqlite)
    added, duplicates = [0, 0], 0
    for first in range(0, 200, 50):
        append(log, events[first : first + 50])
        report = sink(log, by_kafka, batch=7)
        added[0] += report.decisions
        added[1] += report.outcomes
        duplicates += report.duplicates
    assert (*added, duplicates) == (expected.decisions, expected.outcomes, expected.duplicates)
    for name in SUNK:
        assert values(by_kafka.root, name) == values(by_sqlite.root, name)
        # By the partition of the log and the offset there is one row at most.
        found = rows(by_kafka.root, name)
        assert found.select("loop", "partition", "offset").is_unique().all()
    assert isinstance(report.position, dict)
    assert report.position == {part.name: part.end() for part in log.partitions()}
    assert all(
        state.lag == 0 and state.sunk == state.end for state in partition_states(log, by_kafka)
    )
    again = sink(log, by_kafka)
    assert (again.decisions, again.outcomes, again.duplicates) == (0, 0, 0)


def test_offsets_with_gaps_are_followed_to_the_end(
    log: KafkaLog, kafka_config: KafkaConfig, lake: Lake
) -> None:
    """What was taken back isn't there, and marks of transactions don't stop it."""
    name = topic_of(kafka_config.topic_prefix, "shop", "decisions")
    producer = KafkaProducer(
        transactional_id=kafka_config.topic_prefix, **client_settings(kafka_config)
    )
    producer.init_transactions()
    for number in range(6):
        producer.begin_transaction()
        event = decision(f"d{number}")
        producer.send(name, encode_event(event), key=event.decision_id.encode(), partition=0)
        producer.flush()
        if number % 3 == 2:
            producer.abort_transaction()
        else:
            producer.commit_transaction()
    producer.close()
    part = log.partitions()[0]
    assert sink(log, lake, until={part.name: 7}, batch=2).decisions == 3
    assert sunk_position(lake, part) == 7
    report = sink(log, lake, batch=1)
    assert (report.decisions, report.duplicates) == (1, 0)
    assert rows(lake.root, "decisions")["offset"].to_list() == [0, 2, 6, 8]
    assert sunk_position(lake, part) == part.end() == 12


def test_what_an_earlier_log_brought_counts(log: KafkaLog, tmp_path: Path, lake: Lake) -> None:
    """A deployment that moves to Kafka may have records sent again that SQLite's log had."""
    events = [decision(f"d{number}") for number in range(20)]
    with SqliteEventLog(tmp_path / "log") as old:
        append(old, events[:10])
        append(old, [outcome("d1", "o1")])
        sink(old, lake)
    append(log, [*events, outcome("d1", "o1"), outcome("d1", "o2")])
    report = sink(log, lake, batch=3)
    assert (report.decisions, report.outcomes, report.duplicates) == (10, 1, 11)
    assert rows(lake.root, "decisions")["decision_id"].n_unique() == 20


@pytest.mark.parametrize(
    ("commits", "after"),
    [
        ((1, 4), False),
        ((2, 9), True),
        *(pytest.param((1, 2, 4, 7, 9), each, marks=pytest.mark.slow) for each in (False, True)),
    ],
)
def test_a_crash_at_any_commit_changes_nothing(
    log: KafkaLog, tmp_path: Path, *, commits: tuple[int, ...], after: bool
) -> None:
    append(log, mixed_events(60, seed=3))
    whole = Lake(tmp_path / "whole")
    sink(log, whole)
    for commit in commits:
        root = tmp_path / str(commit)
        with pytest.raises(CrashError):
            sink(log, CrashingLake(root, commit, after=after), batch=4)
        sink(log, Lake(root), batch=5)
        for name in SUNK:
            assert rows(root, name).equals(rows(whole.root, name)), (name, commit)


def test_a_partition_that_somebody_else_brings_over_is_left_to_him(
    log: KafkaLog, lake: Lake
) -> None:
    """A zombie, which doesn't know that its partition is another's: at every point of a batch."""
    append(log, [decision(f"d{number}") for number in range(60)])
    part = next(each for each in log.partitions() if each.end() > 10)
    zombie, owner = PartitionSink(part, lake), PartitionSink(part, lake)
    zombie.begin()
    owner.begin()
    owner.step(part.end(), 4)
    with pytest.raises(ProgressError):
        zombie.step(part.end(), 8)
    assert zombie.begin() == 4
    # He has come as far as to write when the other one commits.
    real, beaten = lake.append, []

    def beat(table: TableName, *args: Any, **kwargs: Any) -> None:
        lake.append = real  # type: ignore[method-assign]
        owner.step(part.end(), 3)
        beaten.append(table)
        real(table, *args, **kwargs)

    lake.append = beat  # type: ignore[method-assign]
    with pytest.raises(ProgressError):
        zombie.step(part.end(), 8)
    assert beaten == ["decisions"]
    assert zombie.begin() == 7
    zombie.step(part.end(), 2)
    with pytest.raises(ProgressError):
        owner.step(part.end(), 2)
    report = sink(log, lake)
    assert report.duplicates == 0
    assert rows(lake.root, "decisions")["decision_id"].is_unique().all()
    assert len(rows(lake.root, "decisions")) == 60


BAD: list[tuple[Stream, bytes | None, bytes | None, list[tuple[str, bytes]], str]] = [
    ("decisions", b"k", b"not json", [], "event: expected a Croupier event"),
    ("decisions", b"k", b"\xff\xfe", [], "event: expected a Croupier event"),
    ("decisions", b"k", None, [], "record: expected a value"),
    ("decisions", None, encode_event(decision("k")), [], "record: expected a key"),
    ("decisions", b"k", encode_event(decision("k")), [(SCHEMA_HEADER, b"9")], "schema version 1"),
    ("decisions", b"k", encode_event(decision("k")), [(KIND_HEADER, b"kiss")], "got b'kiss'"),
    ("decisions", b"k", encode_event(outcome("k", "o")), [], "event.type: expected one of deci"),
    ("outcomes", b"k", encode_event(decision("k")), [], "event.type: expected one of outcomes"),
    ("decisions", b"k", encode_event(decision("k", loop="mail")), [], "expected 'shop', got 'mail"),
    ("decisions", b"other", encode_event(decision("k")), [], "record.key: expected 'k'"),
    ("decisions", b"k", encode_event(decision("k", version=3)), [], "event.version"),
    ("decisions", b"k", encode_event(decision("k", chosen=2)), [], "event.chosen"),
    ("decisions", b"k", encode_event(decision("k", ts=-1)), [], "event.ts"),
    ("decisions", b"k", encode_event(decision("k", ts=2**62)), [], "event.ts"),
    ("decisions", b"k", encode_event(decision("k", generation=2**63)), [], "the lake can hold"),
]


def test_what_can_t_be_read_is_set_aside_and_the_sink_goes_on(
    log: KafkaLog, kafka_config: KafkaConfig, lake: Lake
) -> None:
    """All kinds of it among good records, in one batch and in several."""
    producer = KafkaProducer(**client_settings(kafka_config))
    append(log, [decision("before")])
    for stream, key, value, headers, _ in BAD:
        name = topic_of(kafka_config.topic_prefix, "shop", stream)
        producer.send(name, value, key=key, headers=headers, partition=0).get(10)
    append(log, [decision(f"after{number}") for number in range(20)])
    producer.close()
    report = sink(log, lake, batch=6)
    assert (report.decisions, report.duplicates, report.set_aside) == (21, 0, len(BAD))
    dead = dead_letters(kafka_config, "shop")
    assert len(dead) == len(BAD)
    for _, key, value, headers, reason in BAD:
        found = [each for each in dead if reason in each[REASON_HEADER].decode()]
        assert found, reason
        assert any(
            (each["key"], each["value"]) == (key or b"", value or b"")
            and dict(headers).items() <= each.items()
            for each in found
        ), reason
    # Nothing is said of them again: not by the next run, nor by a replay.
    assert sink(log, lake).set_aside == 0
    fresh = Lake(lake.root.with_name("fresh"))
    assert sink(log, fresh, again=True).set_aside == len(BAD)
    assert len(dead_letters(kafka_config, "shop")) == len(BAD)
    assert rows(fresh.root, "decisions").equals(rows(lake.root, "decisions"))


def test_nothing_is_passed_over_before_it_is_set_aside(
    log: KafkaLog, kafka_config: KafkaConfig, tmp_path: Path
) -> None:
    """A crash between the two sets it aside twice, from the same origin."""
    name = topic_of(kafka_config.topic_prefix, "shop", "decisions")
    producer = KafkaProducer(**client_settings(kafka_config))
    producer.send(name, b"?", key=b"k", partition=1).get(10)
    producer.close()
    with pytest.raises(CrashError):
        sink(log, CrashingLake(tmp_path / "lake", 1, after=False))
    assert len(dead_letters(kafka_config, "shop")) == 1
    assert sink(log, Lake(tmp_path / "lake")).set_aside == 1
    assert [each[OFFSET_HEADER] for each in dead_letters(kafka_config, "shop")] == [b"0", b"0"]


def test_a_log_that_ends_before_the_lake_is_refused(log: KafkaLog, lake: Lake) -> None:
    part = log.partitions()[0]
    empty = rows(lake.root, "decisions")
    lake.append("decisions", empty, app=f"croupier-sink:{part.name}", progress=5)
    with pytest.raises(InvalidInputError, match="up to position 5; this one ends at 0"):
        sink(log, lake)


def test_records_that_went_before_they_were_sunk_are_told(log: KafkaLog, lake: Lake) -> None:
    append(log, [decision("d", slot=str(number)) for number in range(10)])
    part = next(each for each in log.partitions() if each.end())
    sink(log, lake, until={part.name: 3})
    part.release(6)
    report = sink(log, lake)
    assert (report.decisions, report.missed) == (4, 3)
    assert rows(lake.root, "decisions")["offset"].to_list() == [0, 1, 2, 6, 7, 8, 9]


def test_a_lake_is_built_anew_bit_for_bit(log: KafkaLog, tmp_path: Path) -> None:
    """After nights of sinking, joining and forgetting, and with more coming in after that."""
    rng = random.Random(1)
    lake, fresh = Lake(tmp_path / "lake"), Lake(tmp_path / "fresh")
    config = LoopConfig(attribution_window="10 min", log_retention="2 d", aggregation="mean")
    loops = dict.fromkeys(LOOPS, config)
    for night in range(5):
        start = EPOCH_US + night * DAY_US
        events: list[Event] = []
        for number in range(40):
            loop, key = rng.choice(LOOPS), f"n{night}d{number}"
            ts = start + number * 60_000_000
            events.append(decision(key, ts, loop=loop))
            events += [
                outcome(key, f"{key}o{count}", ts + 1, loop=loop, reward=rng.random())
                for count in range(rng.randrange(3))
            ]
        append(log, [*events, *rng.choices(events, k=10)])
        now = start + DAY_US
        sink(log, lake, batch=rng.choice([5, 100]))
        for loop in LOOPS:
            join(lake, loop, config, now)
        retain(lake, log, loops, now_us=now)
        if night == 2:
            assert forget_all(lake, log, "mail").decisions["mail"] > 0
            # What was forgotten may come again.
            append(log, [each for each in events if each.loop == "mail"])
    with fresh.lock():
        reports = sink_again(log, fresh, lake, LOOPS)
        for loop in LOOPS:
            join(fresh, loop, config, now)
            forget_again(fresh, lake, loop)
    assert sum(report.decisions for report in reports) >= 80
    for table in (*SUNK, "interactions"):
        assert rows(fresh.root, table).equals(rows(lake.root, table)), table
    assert len(rows(lake.root, "interactions")) > 60


def test_the_log_lets_go_of_what_the_lake_has_forgotten(log: KafkaLog, lake: Lake) -> None:
    """Of each partition by itself, and of nothing that isn't sunk and joined."""
    config = LoopConfig(log_retention="2 d")
    loops = dict.fromkeys(LOOPS, config)
    old = [decision(f"old{number}") for number in range(30)]
    young = [decision(f"young{number}", EPOCH_US + 10 * DAY_US) for number in range(30)]
    append(log, [*old, *young])
    now = EPOCH_US + 11 * DAY_US
    assert retain(lake, log, loops, now_us=now).segments == 0
    sink(log, lake)
    assert retain(lake, log, loops, now_us=now).decisions == {}
    for loop in LOOPS:
        join(lake, loop, config, now)
    report = retain(lake, log, loops, now_us=now)
    assert (report.decisions, report.segments) == ({"shop": 30}, 3)
    for part in log.partitions()[:3]:
        left = part.read(part.start(), limit=100)
        assert left
        assert all(entry.key.startswith("young") for entry in left)
    assert rows(lake.root, "decisions")["decision_id"].str.starts_with("young").all()


def test_progress_is_that_of_all_partitions(log: KafkaLog, lake: Lake) -> None:
    append(log, mixed_events(40, seed=1))
    seen: list[tuple[int, int]] = []
    sink(log, lake, lambda done, total: seen.append((done, total)), batch=4)
    assert seen[-1] == (40, 40)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_record_may_be_as_large_as_a_message(log: KafkaLog, lake: Lake) -> None:
    large = decision("d", context={"x": "y" * (log.max_payload_bytes // 2)})
    log.append([Record.of(large), Record.of(decision("e"))])
    assert sink(log, lake).decisions == 2


@pytest.mark.timeout(900)
def test_partitions_are_brought_over_side_by_side(
    kafka_config: KafkaConfig, tmp_path: Path, ray_engine: RayEngine
) -> None:
    """By workers, one of which is killed in the middle; nothing is left out or there twice."""
    config = msgspec.structs.replace(kafka_config, partitions=2)
    ensure_topics(config, ["shop"])
    lake, alone = Lake(tmp_path / "lake"), Lake(tmp_path / "alone")
    shop = [each for each in mixed_events(300, seed=5) if each.loop == "shop"]
    with KafkaLog(config, ["shop"]) as log:
        append(log, shop[:70])
        assert sink(log, lake, engine=ray_engine) == sink(log, alone)
        append(log, shop[70:])
        killing = Killing(ray_engine, "_bring_over", tmp_path)
        told: list[tuple[int, int]] = []
        report = sink(log, lake, lambda *at: told.append(at), batch=7, engine=killing)
        assert killing.killed
        assert told[-1][0] == told[-1][1] > 0
        assert report.position == sink(log, alone).position
        assert sink(log, lake, engine=ray_engine).decisions == 0
    for table in SUNK:
        assert rows(lake.root, table).equals(rows(alone.root, table))
        assert len(rows(lake.root, table)) > 0
