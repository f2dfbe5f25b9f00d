"""Reading topics by position, on a real broker: nothing is left out, and nothing made up."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from croupier.eventlog.kafka.config import KafkaConfig
from croupier.eventlog.kafka.connection import client_settings, ensure_topics
from croupier.eventlog.kafka.reading import KafkaEntry, KafkaLog
from croupier.eventlog.kafka.topics import (
    KIND_HEADER,
    OFFSET_HEADER,
    PARTITION_HEADER,
    REASON_HEADER,
    SCHEMA_HEADER,
    TOPIC_HEADER,
    topic,
)
from croupier.eventlog.log import Record
from croupier.policy.errors import InvalidInputError, LogUnavailableError
from tests.offline.logs import decision, outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from croupier.eventlog.log import LogPartition

pytestmark = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def log(kafka_config: KafkaConfig) -> Iterator[KafkaLog]:
    with KafkaLog(kafka_config, ["shop"]) as opened:
        yield opened


@pytest.fixture
def producing(kafka_config: KafkaConfig) -> Iterator[KafkaProducer]:
    """A producer with transactions, to topics that are there."""
    ensure_topics(kafka_config, ["shop"])
    producer = KafkaProducer(
        transactional_id=kafka_config.topic_prefix, **client_settings(kafka_config)
    )
    producer.init_transactions()
    yield producer
    producer.close(timeout=5)


def everything(part: LogPartition, limit: int = 1000) -> list[int]:
    """Positions from the start on, read piece by piece."""
    position, positions = part.start(), []
    while found := part.read(position, limit=limit):
        assert len(found) <= limit
        positions += [entry.position for entry in found]
        position = positions[-1] + 1
    return positions


def test_before_there_are_topics_there_are_no_partitions(log: KafkaLog) -> None:
    assert list(log.partitions()) == []


def test_what_was_appended_is_read_by_position(log: KafkaLog, kafka_config: KafkaConfig) -> None:
    events = [decision(f"d{number}") for number in range(50)]
    log.append([Record.of(event) for event in events])
    log.append([Record.of(outcome(f"d{number}", f"o{number}")) for number in range(50)])
    parts = log.partitions()
    names = [
        f"{topic(kafka_config.topic_prefix, 'shop', stream)}-{number}"
        for stream in ("decisions", "outcomes", "audits")
        for number in range(3)
    ]
    assert [part.name for part in parts] == names
    found = {part.name: part.read(part.start(), limit=1000) for part in parts}
    decided = [entry for part in parts[:3] for entry in found[part.name]]
    assert sorted(entry.payload for entry in decided) == sorted(
        Record.of(event).payload for event in events
    )
    for part in parts:
        entries = found[part.name]
        assert part.end() == len(entries)
        assert [entry.position for entry in entries] == list(range(len(entries)))
        assert everything(part, limit=3) == list(range(len(entries)))
        assert part.read(part.end(), limit=5) == []
        assert {(entry.loop, entry.flaw) for entry in entries} <= {("shop", None)}
    # Outcomes are where their decisions are.
    for number in range(3):
        keys = [{entry.key for entry in found[parts[base + number].name]} for base in (0, 3)]
        assert keys[0] == keys[1]
    assert log.ends(parts) == {part: part.end() for part in parts}
    assert {entry.kind for entry in decided} == {"decision"}


def test_what_is_not_committed_is_not_there(log: KafkaLog, producing: KafkaProducer) -> None:
    """Neither what was taken back nor what may still be; the end stops before the latter."""
    name = topic(log.config.topic_prefix, "shop", "decisions")

    def write(count: int) -> None:
        for _ in range(count):
            producing.send(name, b"value", key=b"k", partition=0)
        producing.flush()

    for committed in (True, False, True):
        producing.begin_transaction()
        write(3)
        if committed:
            producing.commit_transaction()
        else:
            producing.abort_transaction()
    part = log.partitions()[0]
    # Each transaction ends with a mark, which takes a position too.
    assert part.end() == 12
    assert everything(part) == everything(part, limit=2) == [0, 1, 2, 8, 9, 10]
    assert [entry.position for entry in part.read(3, limit=2)] == [8, 9]
    assert part.read(11, limit=5) == []
    producing.begin_transaction()
    write(2)
    assert part.end() == 12
    assert everything(part) == [0, 1, 2, 8, 9, 10]
    producing.commit_transaction()
    assert part.end() == 15
    assert everything(part) == [0, 1, 2, 8, 9, 10, 12, 13]
    producing.begin_transaction()
    write(2)
    producing.abort_transaction()
    # Nothing but what was taken back: nothing is read, and that at once.
    assert (part.end(), part.read(14, limit=10)) == (18, [])


def test_what_was_released_is_gone_and_said_to_be(log: KafkaLog) -> None:
    log.append([Record.of(decision("d", ts)) for ts in range(10)])
    (part,) = (each for each in log.partitions() if each.end())
    assert part.expires
    assert part.release(4) == 1
    assert part.release(4) == part.release(3) == 0
    assert (part.start(), part.end()) == (4, 10)
    with pytest.raises(InvalidInputError, match=r"position: expected at least 4.*got 3"):
        part.read(3, limit=10)
    assert [entry.position for entry in part.read(4, limit=100)] == [4, 5, 6, 7, 8, 9]
    assert part.release(10) == 1
    assert part.start() == part.end() == 10
    with pytest.raises(InvalidInputError, match="limit: expected at least 1"):
        part.read(10, limit=0)


def test_threads_take_turns(log: KafkaLog) -> None:
    log.append([Record.of(decision(f"d{number}")) for number in range(300)])
    parts = [part for part in log.partitions() if part.stream == "decisions"]
    seen: list[list[int]] = []

    def read(part: LogPartition) -> None:
        seen.append(everything(part, limit=17))

    threads = [threading.Thread(target=read, args=[part]) for part in parts for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [list(range(part.end())) for part in parts for _ in range(2)]
    assert sorted(seen) == sorted(expected)


@pytest.mark.parametrize(
    ("message", "flaw"),
    [
        ((b"k", b"{}", []), None),
        ((b"k", b"{}", [(SCHEMA_HEADER, b"1"), (KIND_HEADER, b"decision")]), None),
        ((b"k", b"{}", [(SCHEMA_HEADER, b"2")]), "expected schema version 1, got b'2'"),
        ((b"k", b"{}", [(KIND_HEADER, b"outcome")]), "of kind decision, got b'outcome'"),
        ((b"k", b"{}", [(KIND_HEADER, b"\xff")]), "a record of kind decision"),
        ((None, b"{}", []), "expected a key, got none"),
        ((b"k", None, []), "expected a value, got none"),
    ],
)
def test_flaws_that_the_log_sees(
    log: KafkaLog,
    kafka_config: KafkaConfig,
    message: tuple[bytes | None, bytes | None, list[tuple[str, bytes]]],
    flaw: str | None,
) -> None:
    key, value, headers = message
    ensure_topics(kafka_config, ["shop"])
    send(kafka_config, topic(kafka_config.topic_prefix, "shop", "decisions"), key, value, headers)
    (entry,) = log.partitions()[0].read(0, limit=10)
    assert isinstance(entry, KafkaEntry)
    assert (entry.raw_key, entry.raw_value, list(entry.headers)) == (key, value, headers)
    assert (entry.payload, entry.key) == (value or b"", (key or b"").decode())
    assert (entry.flaw is None) == (flaw is None)
    assert flaw is None or flaw in str(entry.flaw)


def test_dead_letters_are_the_message_and_where_it_comes_from(
    log: KafkaLog, kafka_config: KafkaConfig
) -> None:
    ensure_topics(kafka_config, ["shop"])
    name = topic(kafka_config.topic_prefix, "shop", "outcomes")
    bad = [(b"\xff\xfe", b"\x00", [("mine", b"1")]), (None, b"", []), (b"k", None, [])]
    for key, value, headers in bad:
        send(kafka_config, name, key, value, headers)
    (part,) = (each for each in log.partitions() if each.end())
    error = InvalidInputError("event", "expected better")
    for _ in range(2):
        part.set_aside([(entry, error) for entry in part.read(0, limit=10)])
    dead = dead_letters(kafka_config, "shop")
    assert len(dead) == 6
    origins = {(each[TOPIC_HEADER], each[PARTITION_HEADER], each[OFFSET_HEADER]) for each in dead}
    assert origins == {(name.encode(), b"0", str(offset).encode()) for offset in range(3)}
    first = next(each for each in dead if each[OFFSET_HEADER] == b"0")
    assert (first["key"], first["value"], first["mine"]) == (b"\xff\xfe", b"\x00", b"1")
    assert {each[REASON_HEADER] for each in dead} == {b"event: expected better"}


def test_a_cluster_that_is_away_is_unavailable() -> None:
    away = KafkaConfig(bootstrap_servers=("127.0.0.1:1",), delivery_timeout_s=0.5)
    with KafkaLog(away, ["shop"]) as log:
        part = log.partition("shop", "decisions", 0)
        for ask in (log.partitions, part.start, part.end, lambda: part.read(0, limit=1)):
            with pytest.raises(LogUnavailableError):
                ask()
    with pytest.raises(LogUnavailableError, match="closed"):
        part.end()


def send(
    config: KafkaConfig,
    name: str,
    key: bytes | None,
    value: bytes | None,
    headers: list[tuple[str, bytes]],
) -> None:
    """Put a message into partition 0 of a topic, whatever it is."""
    producer = KafkaProducer(**client_settings(config))
    producer.send(name, value, key=key, headers=headers, partition=0).get(10)
    producer.close()


def dead_letters(config: KafkaConfig, loop: str) -> list[dict[str, Any]]:
    """The messages in a loop's topic of dead letters: headers, key and value."""
    consumer = KafkaConsumer(auto_offset_reset="earliest", **client_settings(config))
    name = topic(config.topic_prefix, loop, "dead-letters")
    places = [TopicPartition(name, each) for each in range(config.partitions)]
    consumer.assign(places)
    ends = consumer.end_offsets(places)
    found: list[dict[str, Any]] = []
    while len(found) < sum(ends.values()):
        for messages in consumer.poll(500).values():
            found += [
                {"key": each.key, "value": each.value} | dict(each.headers) for each in messages
            ]
    consumer.close()
    return found
